"""A codec in processes of its own: the same results, errors of the calls, and the end of a process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from colazip.archive import Archive
from colazip.codec import Codec
from colazip.errors import ColazipError, FormatError, UsageError
from colazip.layers import Block
from colazip.pool import MOST_WORKERS, PooledCodec
from tests.tiny_model import passages, tiny_codec, tiny_folder, tiny_model

ROOT = Path(__file__).parents[2]
PARTS = [[text.encode() for text in passages()[i : i + 6]] for i in (0, 6, 12, 18, 24)]


@pytest.fixture(scope="module")
def pooled() -> Iterator[PooledCodec]:
    with PooledCodec(tiny_codec(), 2) as codec:
        yield codec


def test_blocks_are_those_of_one_process(pooled: PooledCodec) -> None:
    expected = tiny_codec().encode_blocks(PARTS)
    coded = pooled.encode_blocks(PARTS)
    assert [block.layers for block in coded] == [block.layers for block in expected]
    assert pooled.decode_blocks(coded) == PARTS
    assert pooled.read_gist(coded) == tiny_codec().read_gist(coded)
    assert pooled.encode_blocks([]) == [] and pooled.decode_blocks([]) == []
    assert pooled.decode_blocks(coded[:1]) == PARTS[:1]


def test_archives_are_too(pooled: PooledCodec, tmp_path: Path) -> None:
    texts = passages()[:200]
    for name, codec in (("one", tiny_codec()), ("many", pooled)):
        Archive.pack(tmp_path / name, texts, codec=codec, layers=("search", "gist", "exact"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
    with Archive(tmp_path / "many", pooled) as archive:
        assert [record.data.decode() for record in archive] == texts
        assert archive.get("7").decode() == texts[7]


def test_options_go_with_the_codec() -> None:
    codec = Codec(tiny_model(), detail=1, code_bytes=8)
    with PooledCodec(codec, 2) as pooled:
        assert pooled.encode_blocks(PARTS)[3].layers == codec.encode_blocks(PARTS)[3].layers
        narrow = pooled.with_code_bytes(4)
        assert isinstance(narrow, Codec) and narrow.code_bytes == 4
    copy = pickle.loads(pickle.dumps(codec.with_code_bytes(4)))
    assert copy.id == codec.id and copy.code_bytes == 4
    assert copy.encode_blocks(PARTS[:1])[0].layers == narrow.encode_blocks(PARTS[:1])[0].layers


def test_errors_come_through(pooled: PooledCodec) -> None:
    coded = pooled.encode_blocks(PARTS)
    torn = Block(coded[4].count, {**coded[4].layers, "gist": coded[4].layers["gist"][:-3]})
    with pytest.raises(FormatError, match="damaged"):
        pooled.decode_blocks([*coded[:4], torn])
    with pytest.raises(UsageError, match="keep both, or neither"):
        pooled.encode_blocks(PARTS, ("exact",))
    assert pooled.decode_blocks(coded) == PARTS  # and it goes on


def test_a_lost_process_is_one_line_and_not_the_end() -> None:
    with PooledCodec(tiny_codec(), 2) as pooled:
        coded = pooled.encode_blocks(PARTS)
        assert pooled._processes is not None
        for pid in list(pooled._processes._processes):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ColazipError, match="a worker process ended"):
            pooled.decode_blocks(coded)
        assert pooled.decode_blocks(coded) == PARTS


def test_processes_end_with_one_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from colazip import Codec, PooledCodec\n"
        "if __name__ == '__main__':\n"
        "    pooled = PooledCodec(Codec.from_pretrained(sys.argv[1]), 2)\n"
        "    pooled.encode_blocks([[b'one text'], [b'another']])\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, str(script), str(tiny_folder())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as caller:
        assert caller.stdout is not None and caller.stdout.readline() == b"ready\n"
        caller.kill()
        # The pipe has an end when the last of those that could write to it is gone.
        assert caller.communicate(timeout=60) == (b"", None)


def test_numbers_of_workers() -> None:
    for workers in (0, -1, MOST_WORKERS + 1):
        with pytest.raises(UsageError, match="workers: must be"):
            PooledCodec(tiny_codec(), workers)


def test_devices_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="must be cpu or cuda"):
        Codec(tiny_model(), device="abacus")
    with pytest.raises(UsageError, match="must be cpu or cuda"):
        Codec(tiny_model(), device="meta")
