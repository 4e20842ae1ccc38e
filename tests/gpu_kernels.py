"""The codec through the kernels of a GPU: the same bytes, the same texts, damage found. Fails otherwise.

python -m tests.gpu_kernels [MODEL], with TRITON_INTERPRET=1 where there is no GPU: Triton 3.6 interprets with
NumPy before 2.4, and so slowly that a tiny model is what one wants then.
"""

from __future__ import annotations

import dataclasses
import sys

import torch

from colazip.codec import Codec
from colazip.errors import FormatError
from colazip.layers import Block
from colazip.nn import gpu_exact
from colazip.nn.agreement import agree
from colazip.nn.exact import exact_kernels
from colazip.nn.steps import decoding_kernels
from colazip.pretrained import load
from tests.tiny_model import passages

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def texts(most: int) -> list[list[bytes]]:
    """Parts of three blocks."""
    parts = [text.encode()[:most] for text in passages()[:12]]
    parts += [b"", b"a", b"ab" * 40, bytes(range(256)), "漢字かな交じり".encode()]
    return [parts[:7], parts[7:8], parts[8:]]


def main() -> None:
    assert agree(gpu_exact, DEVICE), "the kernels and the layers differ"
    model = load(sys.argv[1] if len(sys.argv) > 1 else None)
    blocks = texts(2000 if DEVICE.type == "cuda" else 120)
    plain = Codec(model, implementation="numpy")
    through = Codec(model, device=None if DEVICE.type == "cpu" else "cuda", implementation="torch")
    assert exact_kernels(DEVICE) is not None and decoding_kernels(DEVICE) is not None
    for layers in (("search", "gist", "exact"), ("gist", "exact")):
        coded = through.encode_blocks(blocks, layers)
        assert plain.decode_blocks(coded) == blocks, "NumPy reads something else"
        assert through.decode_blocks(coded) == blocks, "the GPU reads something else"
        assert through.read_gist(coded) == plain.read_gist(coded)
        size = sum(len(layer) for block in coded for layer in block.layers.values())
        print(f"{', '.join(layers)}: {size:,} bytes, read the same")
    found = 0
    for name in ("gist", "exact"):
        for at in (-1, -9):
            data = bytearray(coded[2].layers[name])
            data[at] ^= 16
            torn = dataclasses.replace(coded[2], layers={**coded[2].layers, name: bytes(data)})
            found += damaged(through, [*coded[:2], torn])
    print(f"damage found: {found} of 4")
    assert found == 4


def damaged(codec: Codec, blocks: list[Block]) -> bool:
    try:
        codec.decode_blocks(blocks)
    except FormatError:
        return True
    return False


if __name__ == "__main__":
    main()
