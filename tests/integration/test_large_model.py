"""The larger model of the repository: it loads, codes what it reads, and is smaller for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from colazip.codec import Codec
from colazip.layers import EXACT, GIST
from tests.tiny_model import passages

FOLDER = Path(__file__).parents[2] / "models" / "large"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="a distribution has the package's model alone")


def test_it_codes_text_in_fewer_bytes_than_the_one_in_the_package() -> None:
    texts = [t.encode() for t in passages()[:20]]
    sizes = []
    for folder in (None, FOLDER):
        codec = Codec.from_pretrained(folder)
        (block,) = codec.encode_blocks([texts])
        assert codec.decode_blocks([block]) == [texts]
        sizes.append(len(block.layers[GIST]) + len(block.layers[EXACT]))
    assert sizes[1] < sizes[0]


def test_it_weighs_what_a_larger_model_may() -> None:
    assert (FOLDER / "weights.safetensors").stat().st_size <= 60_000_000
