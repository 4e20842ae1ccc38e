"""Streams of format version 1: the same bytes for ever, and readable for ever.

A case of entropy_v1.json has a table, its symbols as slots x[i + 1] = (1103515245 * x[i] + 12345) mod 2**31
with slot[i] = x[i + 1] >> 11, x[0] = seed (so no library's generator takes part), and the stream.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from colazip.entropy import StreamDecoder, encode_streams

CASES = json.loads(Path(__file__).with_name("entropy_v1.json").read_text(encoding="utf-8"))


def symbols_of(case: dict) -> np.ndarray:
    slots, x = [], case["seed"]
    for _ in range(case["symbols"]):
        x = (1103515245 * x + 12345) % 2**31
        slots.append(x >> 11)
    return np.searchsorted(np.array(case["cdf"][1:]), slots, side="right")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_bytes_are_what_they_were(case):
    cdf, symbols = np.array(case["cdf"]), symbols_of(case)
    (coded,) = encode_streams([(cdf[symbols], cdf[symbols + 1] - cdf[symbols])])
    assert coded.hex() == case["stream"]


def test_all_streams_are_read_together():
    symbols = [symbols_of(case) for case in CASES]
    decoder = StreamDecoder([bytes.fromhex(case["stream"]) for case in CASES])
    width = max(len(case["cdf"]) for case in CASES)
    tables = [case["cdf"] + [2**20] * (width - len(case["cdf"])) for case in CASES]
    owner = np.repeat(np.arange(len(CASES)), [len(part) for part in symbols])
    assert (
        decoder.decode(owner, np.array(tables, np.int32)[owner]).tolist() == np.concatenate(symbols).tolist()
    )
    decoder.finish()
