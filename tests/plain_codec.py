"""A codec without a model, small and quick: what tests of the archive and the command line pack with.

Text goes to EXACT as zstd frames, what isn't UTF-8 to PLAIN. The gist of a text is its first 40 characters,
its vector the sum of random vectors that its words hash to. Passages are runs of as many bytes as asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgpack
import numpy as np
import zstandard

from colazip.errors import FormatError, MissingLayerError, UsageError
from colazip.layers import BLOCK_BYTES, EXACT, GIST, PLAIN, SEARCH, Block, Span
from colazip.presets import SMALL, choose

_M, _WIDTH = 8, 8
_GIST_CHARS = 40


class PlainCodec:
    """An `ArchiveCodec`. name: codecs of different names have different ids. passage_bytes: of a passage at
    most; 0: a part is one."""

    def __init__(self, name: str = "plain-test", passage_bytes: int = 0) -> None:
        self.name = name
        self._passage_bytes = passage_bytes
        self.id = hashlib.sha256(name.encode()).hexdigest()
        # From a hash, which no version of NumPy draws otherwise: a golden archive holds codes of it. Scaled
        # so that a decoded code is about as long as the unit vector it stands for.
        noise = hashlib.shake_256(b"codebook").digest(_M * 256 * _WIDTH)
        centroids = np.frombuffer(noise, dtype=np.int8).reshape(_M, 256, _WIDTH).astype(np.float32)
        self.codebook = centroids / np.float32(74 * np.sqrt(_M * _WIDTH))

    code_bytes = None
    abridged = None
    conditional = False
    pack_batch = read_batch = 16

    def with_code_bytes(self, code_bytes: int) -> PlainCodec:
        if code_bytes != _M:
            raise UsageError(f"codes of {code_bytes} bytes")
        return self

    def split(self, data: bytes) -> list[bytes]:
        return [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)] or [b""]

    def encode_blocks(
        self,
        blocks: Sequence[Sequence[bytes]],
        layers: Sequence[str] | None = None,
        preset: str = SMALL,
    ) -> list[Block]:
        wanted, _ = choose(preset, layers)
        return [self._encode(list(parts), wanted) for parts in blocks]

    def _encode(self, parts: list[bytes], layers: Sequence[str]) -> Block:
        slots = [slot for slot, part in enumerate(parts) if _is_text(part)]
        texts = [parts[slot] for slot in slots]
        packed: dict[str, bytes] = {}
        if SEARCH in layers:
            spans = self.passages(parts)
            found = [parts[slot][start:end] for slot in slots for start, end in spans[slot]]
            codes = self._quantize(self.vectors(found)) if found else np.zeros((0, _M), dtype=np.uint8)
            packed[SEARCH] = msgpack.packb([[slot for slot in slots for _ in spans[slot]], codes.tobytes()])
        if GIST in layers:
            packed[GIST] = _pack([slots, [text.decode()[:_GIST_CHARS] for text in texts]])
        if EXACT in layers:
            packed[EXACT] = _pack([slots, texts])
        whole = PLAIN in layers
        others = [slot for slot in range(len(parts)) if whole or slot not in set(slots)]
        if others and (whole or GIST in layers):
            packed[PLAIN] = _pack([others, [parts[slot] for slot in others]])
        return Block(len(parts), packed)

    def decode_blocks(self, blocks: Sequence[Block]) -> list[list[bytes]]:
        return [self._join(b, PLAIN if PLAIN in b.layers and GIST not in b.layers else EXACT) for b in blocks]

    def read_gist(self, blocks: Sequence[Block]) -> list[list[str]]:
        joined = [self._join(block, GIST) for block in blocks]
        return [
            [p.decode("utf-8", "replace") if isinstance(p, bytes) else p for p in parts] for parts in joined
        ]

    def _join(self, block: Block, layer: str) -> list:
        if layer not in block.layers:
            raise MissingLayerError(f"the block has no {layer} layer")
        parts: list = [None] * block.count
        for name in (layer, PLAIN):
            if name in block.layers:
                for slot, part in zip(*_unpack(block.layers[name]), strict=True):
                    parts[slot] = part
        return parts

    def plain_slots(self, block: Block) -> np.ndarray:
        slots = _unpack(block.layers[PLAIN])[0] if PLAIN in block.layers else []
        return np.array(slots, dtype=np.int64)

    def search_codes(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        slots, codes = msgpack.unpackb(block.layers[SEARCH])
        return np.array(slots, dtype=np.int64), np.frombuffer(codes, dtype=np.uint8).reshape(-1, _M)

    def passages(self, parts: Sequence[bytes], counts: Sequence[int] | None = None) -> list[list[Span]]:
        found = []
        for at, part in enumerate(parts):
            count = -(-len(part) // self._passage_bytes) if self._passage_bytes else 1
            count = max(1, count) if _is_text(part) else 0
            count = counts[at] if counts is not None else count
            found.append([(len(part) * i // count, len(part) * (i + 1) // count) for i in range(count)])
        return found

    def vectors(self, texts: Sequence[str | bytes]) -> np.ndarray:
        return np.stack([_vector(text if isinstance(text, bytes) else text.encode()) for text in texts])

    def _quantize(self, vectors: np.ndarray) -> np.ndarray:
        """Nearest centroids. vectors: float32 [N, D] -> uint8 [N, M]."""
        pieces = vectors.reshape(-1, _M, 1, _WIDTH)
        return ((pieces - self.codebook) ** 2).sum(axis=3).argmin(axis=2).astype(np.uint8)


def _vector(text: bytes) -> np.ndarray:
    total = np.zeros(_M * _WIDTH, dtype=np.float32)
    for word in text.lower().split() or [b""]:
        bits = np.frombuffer(hashlib.blake2b(word, digest_size=_M * _WIDTH // 8).digest(), dtype=np.uint8)
        total += np.unpackbits(bits) * np.float32(2) - 1
    return total / max(float(np.sqrt((total**2).sum())), 1e-9)


def _is_text(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


def _pack(value: object) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(msgpack.packb(value))


def _unpack(data: bytes) -> list:
    try:
        return msgpack.unpackb(zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 27))
    except (zstandard.ZstdError, ValueError, msgpack.UnpackException) as error:
        raise FormatError("the block is damaged") from error
