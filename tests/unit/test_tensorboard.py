"""Event files: the checksum of the standard, and what is written comes back."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.train.tensorboard import EventFile, masked_crc
from tests.event_files import read_events


def test_the_checksum_is_crc_32c() -> None:
    rotated = masked_crc(b"123456789") - 0xA282EAD8 & 0xFFFFFFFF
    assert (rotated << 15 | rotated >> 17) & 0xFFFFFFFF == 0xE3069283  # the check value of CRC-32C


NAMES = st.text("abc_", min_size=1, max_size=200)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(NAMES, st.floats(width=32, allow_nan=False), min_size=1), st.integers(0, 1 << 40))
def test_round_trip(tmp_path_factory, values: dict[str, float], step: int) -> None:  # type: ignore[no-untyped-def]
    file = EventFile(Path(tmp_path_factory.mktemp("events")))
    file.write({"step": step, "stage": "no number", **values})
    file.write({"step": step, "validation": "figures", **values})
    read = list(read_events(file.path.read_bytes()))
    both = [*values.items(), *((f"validation/{name}", value) for name, value in values.items())]
    assert read == [(step, name, value) for name, value in both]
