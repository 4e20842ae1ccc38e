"""Classical coders as peers of an archive: each packs a list of records into one string of bytes and back.

Every byte that a reader needs is in that string, record boundaries included:

- per record: varint(length of the coded record), coded record, and so on. A reader that keeps the offsets in
  memory reaches one record by decoding that record alone.
- solid: varint(length) of every record in front, then one stream of all records joined.
- in blocks: as an archive does it, records of up to 64 KiB of text share one coded stream. For each block
  varint(records), varint(tokens) of each, varint(length of the stream), stream. A reader decodes one block.

What ships with the reader isn't counted: the coder itself, and a dictionary, a table or a language model
trained beforehand on other text, just as colazip's model isn't.
"""

from __future__ import annotations

import itertools
import lzma
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import zstandard

from colazip.entropy import PRECISION, StreamDecoder, encode_streams
from colazip.layers import BLOCK_BYTES, BLOCK_PARTS
from colazip.wire import varint, varints

if TYPE_CHECKING:
    from colazip.tokenizer import Tokenizer

# What ZDICT's cover algorithm is run with: of k 50 to 400 and d 6, 8 the best on a validation split at 1 MiB,
# and within 0.2 % of the best at 110 KiB.
DICTIONARY_SEGMENT = 100
DICTIONARY_DMER = 8
DICTIONARY_SIZES = {"110 KiB": 110 << 10, "1 MiB": 1 << 20}
PPMD_ORDER = 16
PPMD_MEMORY = 256 << 20


@dataclass(frozen=True)
class Peer:
    """A coder of record lists.

    name: as printed in tables.
    access: "record" if one record can be decoded alone, "none" if everything before it has to be decoded.
    pack, unpack: inverse of one another.
    """

    name: str
    access: str
    pack: Callable[[Sequence[bytes]], bytes]
    unpack: Callable[[bytes], list[bytes]]


@dataclass(frozen=True)
class Measurement:
    """What one peer made of one list of records. Seconds are wall clock; sizes are bytes."""

    name: str
    access: str
    records: int
    raw_bytes: int
    total_bytes: int
    pack_seconds: float
    unpack_seconds: float

    @property
    def ratio(self) -> float:
        """Raw bytes over packed bytes."""
        return self.raw_bytes / self.total_bytes if self.total_bytes else 0.0


def measure(peer: Peer, records: Sequence[bytes]) -> Measurement:
    """Pack and unpack `records`. Raises ValueError if they don't come back byte for byte."""
    start = time.perf_counter()
    packed = peer.pack(records)
    middle = time.perf_counter()
    back = peer.unpack(packed)
    end = time.perf_counter()
    if back != list(records):
        raise ValueError(f"{peer.name}: what was unpacked differs from what was packed")
    return Measurement(
        name=peer.name,
        access=peer.access,
        records=len(records),
        raw_bytes=sum(map(len, records)),
        total_bytes=len(packed),
        pack_seconds=middle - start,
        unpack_seconds=end - middle,
    )


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, offset after it) of the varint at `at`. Raises ValueError if `data` ends inside it."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("the data ends inside a length")


def per_record(name: str, compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes]) -> Peer:
    """A peer that codes each record by itself."""

    def pack(records: Sequence[bytes]) -> bytes:
        out = bytearray()
        for record in records:
            coded = compress(record)
            out += varint(len(coded))
            out += coded
        return bytes(out)

    def unpack(data: bytes) -> list[bytes]:
        records, at = [], 0
        while at < len(data):
            length, at = read_varint(data, at)
            records.append(decompress(data[at : at + length]))
            at += length
        return records

    return Peer(name, "record", pack, unpack)


def solid(name: str, compress: Callable[[bytes], bytes], decompress: Callable[[bytes, int], bytes]) -> Peer:
    """A peer that codes all records as one stream; `decompress` is told the length to expect."""

    def pack(records: Sequence[bytes]) -> bytes:
        lengths = b"".join(map(varint, map(len, records)))
        return varint(len(records)) + lengths + compress(b"".join(records))

    def unpack(data: bytes) -> list[bytes]:
        count, at = read_varint(data, 0)
        lengths = []
        for _ in range(count):
            length, at = read_varint(data, at)
            lengths.append(length)
        text = decompress(data[at:], sum(lengths))
        records, at = [], 0
        for length in lengths:
            records.append(text[at : at + length])
            at += length
        return records

    return Peer(name, "none", pack, unpack)


def zstd_per_record(level: int = 19) -> Peer:
    """One zstd frame a record, no checksum."""
    coder, decoder = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return per_record(f"zstd -{level} per record", coder.compress, decoder.decompress)


def zstd_dictionary(samples: Sequence[bytes], size: int, label: str, level: int = 19) -> Peer:
    """One zstd frame a record with a dictionary of at most `size` bytes trained on `samples`.

    The dictionary isn't counted, and its id (four bytes a frame) isn't written: the reader knows which one.
    """
    trained = train_dictionary(samples, size)
    coder = zstandard.ZstdCompressor(level=level, dict_data=trained, write_dict_id=False)
    decoder = zstandard.ZstdDecompressor(dict_data=trained)
    return per_record(f"zstd -{level} + dictionary {label}", coder.compress, decoder.decompress)


def train_dictionary(samples: Sequence[bytes], size: int) -> zstandard.ZstdCompressionDict:
    """Dictionary of at most `size` bytes. Raises ValueError if the samples are too few to make one."""
    try:
        return zstandard.train_dictionary(size, list(samples), k=DICTIONARY_SEGMENT, d=DICTIONARY_DMER)
    except zstandard.ZstdError as error:
        raise ValueError(f"no dictionary of {size} bytes from {len(samples)} samples: {error}") from error


def zstd_solid(level: int = 22) -> Peer:
    """All records in one zstd frame."""
    coder, decoder = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return solid(f"zstd -{level} solid", coder.compress, lambda data, _: decoder.decompress(data))


def brotli_per_record(quality: int = 11) -> Peer:
    """One brotli stream a record. Needs the brotli package."""
    import brotli

    def compress(data: bytes) -> bytes:
        return brotli.compress(data, mode=brotli.MODE_TEXT, quality=quality)

    return per_record(f"brotli -{quality} per record", compress, brotli.decompress)


def brotli_solid(quality: int = 11) -> Peer:
    """All records in one brotli stream with the largest window. Needs the brotli package."""
    import brotli

    def compress(data: bytes) -> bytes:
        return brotli.compress(data, mode=brotli.MODE_TEXT, quality=quality, lgwin=24)

    return solid(f"brotli -{quality} solid", compress, lambda data, _: brotli.decompress(data))


def xz_solid() -> Peer:
    """All records in one xz stream, preset -9e."""
    preset = 9 | lzma.PRESET_EXTREME
    return solid(
        "xz -9e solid", lambda data: lzma.compress(data, preset=preset), lambda data, _: lzma.decompress(data)
    )


def ppmd_solid(order: int = PPMD_ORDER, memory: int = PPMD_MEMORY) -> Peer:
    """All records in one PPMd stream, variant H. Needs the pyppmd package.

    memory: bytes the model may grow to; large enough that it never restarts on the texts measured here.
    """
    import pyppmd

    def compress(data: bytes) -> bytes:
        coder = pyppmd.Ppmd7Encoder(order, memory)
        return coder.encode(data) + coder.flush()

    def decompress(data: bytes, length: int) -> bytes:
        decoder = pyppmd.Ppmd7Decoder(order, memory)
        out = decoder.decode(data, length)
        if len(out) < length:
            # The range decoder looks a byte past what the encoder had to write.
            out += decoder.decode(b"\0", length - len(out))
        return out

    return solid(f"PPMd order {order} solid", compress, decompress)


def in_blocks(records: Sequence[bytes]) -> list[range]:
    """Which records stand in each block, filled in their order as an archive's writer does. A record longer
    than a block has one of its own."""
    blocks: list[range] = []
    first = room = 0
    for index, record in enumerate(records):
        if index and (len(record) > room or index - first == BLOCK_PARTS):
            blocks.append(range(first, index))
            first = index
        if index == first:
            room = BLOCK_BYTES
        room -= len(record)
    return [*blocks, range(first, len(records))] if records else []


def frequency_table(counts: np.ndarray) -> np.ndarray:
    """Counts int64 [A] -> frequencies int64 [A], each at least 1, that add up to 2**PRECISION."""
    total = 1 << PRECISION
    smooth = counts + 1
    share = smooth / smooth.sum() * (total - len(counts))
    table = np.floor(share).astype(np.int64) + 1
    largest_remainders = np.argsort(np.floor(share) - share, kind="stable")[: total - int(table.sum())]
    table[largest_remainders] += 1
    return table


def static_ans(tokenizer: Tokenizer, samples: Iterable[bytes]) -> Peer:
    """Tokens of the model's own vocabulary under one static table, counted over `samples`, coded by the
    package's own entropy coder in blocks."""
    counts = np.zeros(tokenizer.size, np.int64)
    for batch in _batches(samples):
        for tokens in tokenizer.encode(batch):
            counts += np.bincount(tokens, minlength=len(counts))
    table = frequency_table(counts)
    ends = np.cumsum(table)
    cdf = np.concatenate([[0], ends]).astype(np.int32)

    def pack(records: Sequence[bytes]) -> bytes:
        coded = tokenizer.encode(records)
        blocks = [[coded[i] for i in block] for block in in_blocks(records)]
        joined = [np.concatenate(block) for block in blocks]
        streams = encode_streams([(ends[tokens] - table[tokens], table[tokens]) for tokens in joined])
        return b"".join(
            block_head(list(map(len, block)), len(stream)) + stream
            for block, stream in zip(blocks, streams, strict=True)
        )

    def unpack(data: bytes) -> list[bytes]:
        lengths: list[list[int]] = []
        streams: list[bytes] = []
        at = 0
        while at < len(data):
            count, at = read_varint(data, at)
            lengths.append([])
            for _ in range(count):
                length, at = read_varint(data, at)
                lengths[-1].append(length)
            size, at = read_varint(data, at)
            streams.append(data[at : at + size])
            at += size
        decoder = StreamDecoder(streams)
        tokens = decoder.decode(np.repeat(np.arange(len(streams)), [sum(block) for block in lengths]), cdf)
        decoder.finish()
        cuts = np.cumsum([length for block in lengths for length in block])[:-1]
        return [tokenizer.decode(part.tolist()) for part in np.split(tokens, cuts)] if lengths else []

    return Peer("BPE + static ANS", "record", pack, unpack)


def block_head(tokens: Sequence[int], stream: int) -> bytes:
    """What stands in front of a block's stream: its records, the tokens of each, the bytes of the stream."""
    return varints([len(tokens), *tokens, stream])


def _batches(samples: Iterable[bytes], size: int = 4096) -> Iterable[list[bytes]]:
    iterator = iter(samples)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def language_model_bytes(records: Sequence[bytes], tokens: Sequence[np.ndarray], bits: np.ndarray) -> int:
    """What an arithmetic coder would write of records, whose tokens cost so many bits under an autoregressive
    model that sees the record so far.

    Counted, not written: the bits of each block rounded up to bytes, and the varints of the layout in blocks.
    """
    total = 0
    for block in in_blocks(records):
        stream = math.ceil(sum(float(bits[i]) for i in block) / 8)
        total += len(block_head([len(tokens[i]) for i in block], stream)) + stream
    return total


def all_peers(samples: Sequence[bytes] | None, tokenizer: Tokenizer) -> Iterable[Peer]:
    """Every peer of the compression table, built one at a time. Without `samples` none that is trained."""
    yield zstd_per_record()
    yield brotli_per_record()
    if samples is not None:
        for label, size in DICTIONARY_SIZES.items():
            yield zstd_dictionary(samples, size, label)
        yield static_ans(tokenizer, samples)
    yield zstd_solid()
    yield xz_solid()
    yield brotli_solid()
    yield ppmd_solid()
