"""Codec: text <-> layered blobs. The narrow waist between the networks and everything that stores or moves
bytes.

Coding a block: tokens of its parts are cut into segments; every segment is a lane. The networks run over all
lanes side by side; what they say becomes integer frequencies, and the symbols of a block share one entropy-
coded stream a layer.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np

from colazip.brief import Abridger
from colazip.classical import ZSTD, ZSTD_DICTIONARY, ZSTD_MAGIC, ClassicalCoder
from colazip.config import ModelConfig
from colazip.context import Network, Run, in_turn, summands
from colazip.decode import decode_exact, decode_gist, read_tokens
from colazip.economy import HIGHEST, LOWEST, economize
from colazip.entropy import cost_bits, encode_streams
from colazip.errors import FormatError, MissingLayerError, ModelMismatchError, UsageError, VersionError
from colazip.lanes import Lanes, lay_out
from colazip.layers import (
    BLOCK_BYTES,
    BLOCK_PARTS,
    EXACT,
    GIST,
    LAYERS,
    PLAIN,
    SEARCH,
    Block,
    Span,
    in_batches,
)
from colazip.nn.loading import expect_work
from colazip.passages import OVERLAP, PASSAGE_TOKENS, count_passages, windows
from colazip.presets import SMALL, choose
from colazip.pretrained import Model, load
from colazip.search_layer import dump_codes, load_codes
from colazip.side import Side, beside, joined, of_part
from colazip.vectors import assign_codes, read_codes, shorten, unit
from colazip.wire import Reader, varint, varints

if TYPE_CHECKING:
    from colazip.encode import Coded, LaneEncoder
    from colazip.nn.gpu_context import DeviceSums
    from colazip.nn.steps import Networks

_T = TypeVar("_T")
_P = ParamSpec("_P")
# Search codes of a block: the part of each, int64 [n], ascending, and the codes, uint8 [n, M].
Codes = tuple[np.ndarray, np.ndarray]

_MAGIC = b"\xc0\x1a"
_BLOB_VERSION = 3
_PLAIN_BLOB, _MODEL_BLOB = 0, 1
_BLOCKS_AT_ONCE = 16  # bounds memory: about 1 MiB of text in flight
# A GPU takes about as long for few lanes as for many.
_BLOCKS_AT_ONCE_GPU, _BLOCKS_READ_AT_ONCE_GPU = 128, 512
_BATCH, _BATCH_GPU = 64, 256
_MANY_TOKENS = 512  # from here on torch reads words in context faster than NumPy with its int8 products
_SCORED_AT_ONCE = 64  # texts: each has a memory of its own, of 768 KiB
# NumPy's networks start faster, torch's int8 products run faster (docs/performance.md): lanes up to which
# NumPy decodes once torch is there, and tokens up to which loading torch would not pay.
_FEW_LANES, _FEW_LANES_COMPILED = 64, 24
_FEW_TOKENS = 1 << 15

# Text of any language takes at most 0.65 tokens a byte, bytes that are no text 0.9 and more. Such parts skip
# the networks, but not short ones, of which a few odd characters could say that.
_FOREIGN_TOKENS, _FOREIGN_BYTES = 0.8, 64
_PROBE, _PROBE_GAIN = 3, 1.5  # zstd's highest level saves less than a third of what this one leaves


@dataclass(frozen=True)
class Gist:
    """What a gist says of a part. tokens: int64 [T], rarer ones by what stands for them; detail: of the
    gist; side: what it was coded given, if anything, with the part's patches in one lane."""

    tokens: np.ndarray
    detail: int
    side: Side | None = None


_RUNNING = threading.RLock()


def one_at_a_time(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """For all codecs of the process: threads that share networks would write into each other's buffers, and
    what Numba compiled in parallel is not made to run twice at once."""

    @wraps(method)
    def alone(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with _RUNNING:
            return method(*args, **kwargs)

    return alone


class Codec:
    """Codes text with one model. Use `Codec.from_pretrained()`.

    batch_size: segments that pass through the networks together (None: 64, on a GPU 256); it decides speed
    and memory, never a byte of the result. device: where torch runs the networks, such as "cuda"; it decides
    no byte either, and None is the CPU. implementation: "numpy" or "torch" for decoding; None takes the
    faster one each time. detail: of the gists that are written, 0 the most; what a gist leaves out, the exact
    layer holds. brief: write brief gists, about this share of the words of a long text and no exact layer
    (`colazip.brief`). price: leave words out of gists that cost more bits than this for each of their tokens
    that would read right, and write no exact layer (`colazip.economy`); of no text more than half.
    passage_tokens: what a search code stands for in blocks, about so many tokens, a longer
    text gets several; None is one code a part. code_bytes: of the search codes it writes, one of the sizes
    that the model has (`config.codes`); None is the model's own. context: whether what is packed is embedded
    by the model's search encoder, if it has one, which is slower; None: where networks code the text anyway,
    in blocks with a gist. Vectors with it and without lie in one space, and `vectors` is always with it.
    conditional: code gists given the search codes beside them, if the model can; such archives are smaller,
    and their search codes can't be stripped.
    Reading archives depends on none of them. A Codec may be used by one thread at a time.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int | None = None,
        device: str | None = None,
        implementation: Literal["numpy", "torch"] | None = None,
        detail: int = 0,
        brief: float | None = None,
        price: float | None = None,
        passage_tokens: int | None = PASSAGE_TOKENS,
        code_bytes: int | None = None,
        context: bool | None = None,
        conditional: bool = True,
    ) -> None:
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "device": device,
            "implementation": implementation,
            "detail": detail,
            "brief": brief,
            "price": price,
            "passage_tokens": passage_tokens,
            "code_bytes": code_bytes,
            "context": context,
            "conditional": conditional,
        }
        if not 0 <= detail < model.config.details:
            raise UsageError(
                f"detail {detail}: this model writes gists of detail 0 to {model.config.details - 1}"
            )
        self._detail = detail
        self.device = device or "cpu"
        on_cpu = self.device == "cpu"
        if not on_cpu:
            _check_device(self.device)
        batch_size = (_BATCH if on_cpu else _BATCH_GPU) if batch_size is None else batch_size
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size}: must be at least 1")
        if passage_tokens is not None and passage_tokens < 2 * OVERLAP:
            raise UsageError(f"passage_tokens is {passage_tokens}: must be at least {2 * OVERLAP}")
        if implementation == "numpy" and device not in (None, "cpu"):
            raise UsageError("NumPy decodes on the CPU only")
        self._implementation = implementation
        self.model = model
        self.batch_size = batch_size
        self._plain = ClassicalCoder(model.dictionary)
        self._patch = model.config.patch
        self._segment = model.config.segment * model.config.patch
        self._codebook = _codebook(model, model.config.code_bytes if code_bytes is None else code_bytes)
        self._context = context
        # Whether gists are coded given the search codes beside them.
        self.conditional = conditional and bool(model.config.conditional)
        self._passage_tokens = passage_tokens
        if price is not None and not LOWEST <= price <= HIGHEST:  # NaN too
            raise UsageError(f"a price of {price} bits a token: must be from {LOWEST:g} to {HIGHEST:g}")
        if price is not None and brief is not None:
            raise UsageError("a brief chooses words by what they mean, a price by what they cost: give one")
        self._price = price
        self._abridger = None if brief is None else Abridger(brief, model.tokenizer, model.rows)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        batch_size: int | None = None,
        device: str | None = None,
        implementation: Literal["numpy", "torch"] | None = None,
        detail: int = 0,
        brief: float | None = None,
        price: float | None = None,
        passage_tokens: int | None = PASSAGE_TOKENS,
        code_bytes: int | None = None,
        context: bool | None = None,
        conditional: bool = True,
    ) -> Codec:
        """Load a model folder; None is the model inside the package. Raises ModelError."""
        return cls(
            load(path),
            batch_size=batch_size,
            device=device,
            implementation=implementation,
            detail=detail,
            brief=brief,
            price=price,
            passage_tokens=passage_tokens,
            code_bytes=code_bytes,
            context=context,
            conditional=conditional,
        )

    @property
    def pack_batch(self) -> int:
        """Blocks that it codes together: more at a time cost memory and are no faster."""
        return _BLOCKS_AT_ONCE if self.device == "cpu" else _BLOCKS_AT_ONCE_GPU

    @property
    def read_batch(self) -> int:
        """Blocks that it decodes together."""
        return _BLOCKS_AT_ONCE if self.device == "cpu" else _BLOCKS_READ_AT_ONCE_GPU

    @cached_property
    def _encoder(self) -> LaneEncoder:
        from colazip.encode import LaneEncoder

        return LaneEncoder(self.model.vae.to(self.device), self.batch_size)

    @cached_property
    def _device_sums(self) -> DeviceSums:
        import torch

        from colazip.nn.gpu_context import DeviceSums

        model, device = self.model, torch.device(self.device)
        encoder = None if model.context_network is None else model.context_network.to(device)
        return DeviceSums(model.rows, encoder, self._patch, device)

    def _few(self, lanes: Lanes) -> bool:
        """Whether NumPy is the faster way to run these lanes."""
        if self.device != "cpu" or self._implementation:
            return self._implementation == "numpy"
        if "vae" in self.model.__dict__:  # torch is there
            compiled = self.model.compiled is not None
            return len(lanes) <= (_FEW_LANES_COMPILED if compiled else _FEW_LANES)
        return int(lanes.count.sum()) <= _FEW_TOKENS

    @contextmanager
    def _networks(self, lanes: Lanes) -> Iterator[Networks]:
        """The implementation to decode these lanes with: for a few of them compiled loops, or NumPy's, with
        torch's products if torch is there anyway, before those are worth loading; torch's for many."""
        expect_work(int(lanes.count.sum()))
        few = self._few(lanes)
        if few and not self._implementation and (compiled := self.model.compiled) is not None:
            yield compiled
            return
        if few and (self._implementation or "torch" not in sys.modules):
            from colazip.nn.portable import one_thread

            with one_thread():
                yield self.model.portable
            return
        import torch

        from colazip.nn.steps import TorchNetworks

        with torch.inference_mode():
            if few:
                yield self.model.quick
                return
            yield TorchNetworks(self.model.vae.to(self.device))

    @property
    def id(self) -> str:
        """Hex digest of stream version, shapes, tokens and weights."""
        return self.model.id

    @property
    def name(self) -> str:
        return self.model.config.name

    @property
    def codebook(self) -> np.ndarray:
        """Centroids of the search codes, float32 [M, 256, D / M]."""
        return self._codebook

    @property
    def code_bytes(self) -> int | None:
        """Bytes of the search codes, where the model makes several sizes; None where it makes one."""
        return None if self.model.config.code_sizes is None else len(self._codebook)

    @property
    def abridged(self) -> str | None:
        """Which words its gists leave out: "price 9.6", "brief 0.125"; None if none."""
        if self._price is not None:
            return f"price {self._price:g}"
        return None if self._abridger is None else f"brief {self._abridger.share:g}"

    def with_code_bytes(self, code_bytes: int) -> Codec:
        """This codec for codes of another size. Raises UsageError for one that the model does not have."""
        if code_bytes == len(self._codebook):
            return self
        other = copy.copy(self)
        other._codebook = _codebook(self.model, code_bytes)
        other._options = {**self._options, "code_bytes": code_bytes}
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Codec, **self._options), (self.model,)

    # -- one self-contained blob a record

    def encode(
        self,
        records: Sequence[str | bytes],
        layers: Sequence[str] | None = None,
        preset: str = SMALL,
    ) -> list[bytes]:
        """A self-contained blob for each record, at most 8 bytes longer than the record.

        A record that zstd stores smaller than the networks is a zstd frame and nothing else, with the presets
        `fast` and `balanced` every record is: they run no network here, and have no search codes. Records of
        one archive share coder states and are smaller there. Raises UsageError as `encode_blocks` does.
        """
        wanted, level = choose(preset, layers)
        data = _all_as_bytes(records)
        if GIST not in wanted and preset != SMALL:
            return [self._plain_blob(d, level) for d in data]
        parts = [self.split(d) for d in data]
        blocks = iter(self.encode_blocks([[p] for record in parts for p in record], wanted, preset))
        return [
            min(self._coded_blob([next(blocks) for _ in p]), self._plain_blob(d, level), key=len)
            for d, p in zip(data, parts, strict=True)
        ]

    def decode(self, blobs: Sequence[bytes]) -> list[bytes]:
        """Records of blobs that hold the exact layer. FormatError, MissingLayerError, ModelMismatchError,
        VersionError."""
        opened = [self._open_blob(b) for b in blobs]
        parts = iter(self.decode_blocks([block for o in opened if not isinstance(o, bytes) for block in o]))
        return [o if isinstance(o, bytes) else b"".join(next(parts)[0] for _ in o) for o in opened]

    def read(self, blobs: Sequence[bytes]) -> list[str]:
        """Approximate text of blobs from their gist layer alone."""
        opened = [self._open_blob(b) for b in blobs]
        parts = iter(self.read_gist([block for o in opened if not isinstance(o, bytes) for block in o]))
        return [
            o.decode("utf-8", "replace") if isinstance(o, bytes) else "".join(next(parts)[0] for _ in o)
            for o in opened
        ]

    def _coded_blob(self, blocks: Sequence[Block]) -> bytes:
        body = b""
        for block in blocks:
            body += bytes([sum(1 << i for i, n in enumerate((*LAYERS, PLAIN)) if n in block.layers)])
            for name in (*LAYERS, PLAIN):
                if name in block.layers:
                    body += varint(len(block.layers[name])) + block.layers[name]
        head = bytes.fromhex(self.id[:8])
        first = bytes([_BLOB_VERSION << 4 | _MODEL_BLOB])
        return _MAGIC + first + head + _checksum(first + head + body) + body

    def _plain_blob(self, data: bytes, level: int) -> bytes:
        """The shorter blob of zstd; only one that uses the model's dictionary names the model."""
        blobs = []
        for dictionary in (False, True):
            kind, payload = self._plain.encode(data, level, dictionary=dictionary)
            head = bytes.fromhex(self.id[:8]) if kind == ZSTD_DICTIONARY else b""
            # The kind rides in the low bits of the byte that names the version: 7 bytes of overhead if raw.
            first = bytes([_BLOB_VERSION << 4 | kind << 1 | _PLAIN_BLOB])
            blobs.append(_MAGIC + first + head + _checksum(first + head + payload) + payload)
        return min(blobs, key=len)

    def _open_blob(self, blob: bytes) -> bytes | list[Block]:
        """The record itself of a plain blob, else the blocks of its parts."""
        blob = bytes(blob)
        reader = Reader(blob, "blob")
        if reader.take(2) != _MAGIC:
            raise FormatError("not a colazip blob")
        kind = reader.take(1)[0]
        version = kind >> 4
        if version > _BLOB_VERSION:
            raise VersionError(
                f"blob of format {version}: this release reads up to {_BLOB_VERSION}; upgrade colazip"
            )
        if version == 0:
            raise FormatError("blob: damaged, its version is none")
        plain, frame = kind & 1 == _PLAIN_BLOB, kind >> 1 & 7
        head = reader.take(4) if not plain or frame == ZSTD_DICTIONARY else b""
        checksum, body = reader.take(4), reader.rest()
        # Version 1 left this byte out of the checksum, and kept the magic number of zstd frames.
        covered = head + body if version == 1 else bytes([kind]) + head + body
        if _checksum(covered) != checksum:
            raise FormatError("blob: damaged, its checksum does not match")
        if head and head.hex() != self.id[:8]:
            raise ModelMismatchError(f"blob was coded with model {head.hex()}…, this one is {self.id[:8]}…")
        if plain:
            if version == 1 and frame == ZSTD:
                body = body[len(ZSTD_MAGIC) :]
            # A zstd frame of n bytes can hold far more; 2**31 bounds what one blob may ask for.
            return self._plain.decode(frame, body, 1 << 31)
        reader = Reader(body, "blob")
        blocks = []
        while reader.left:
            mask = reader.take(1)[0]
            present = [name for i, name in enumerate((*LAYERS, PLAIN)) if mask >> i & 1]
            blocks.append(Block(1, {name: reader.take(reader.varint(reader.left)) for name in present}))
        return blocks

    # -- blocks: what archives store

    def split(self, data: bytes) -> list[bytes]:
        """Cut a record into parts of at most BLOCK_BYTES, after a line end or a space where there is one."""
        parts, at = [], 0
        while len(data) - at > BLOCK_BYTES:
            window = data[at : at + BLOCK_BYTES]
            cut = max(window.rfind(b"\n", BLOCK_BYTES // 2), window.rfind(b" ", BLOCK_BYTES - 256) - 1) + 1
            if cut <= 0:
                cut = BLOCK_BYTES
                while cut > BLOCK_BYTES - 4 and data[at + cut] & 0xC0 == 0x80:  # not inside a character
                    cut -= 1
            parts.append(data[at : at + cut])
            at += cut
        parts.append(data[at:])
        return parts

    @one_at_a_time
    def encode_blocks(
        self,
        blocks: Sequence[Sequence[bytes]],
        layers: Sequence[str] | None = None,
        preset: str = SMALL,
    ) -> list[Block]:
        """Code each sequence of parts (at most BLOCK_BYTES of text, BLOCK_PARTS parts) as one block.

        preset, layers: as `colazip.presets.choose` takes them; raises its UsageError. The result does not
        depend on what else is in the call, on the batch size, or on threads.
        """
        wanted, level = choose(preset, layers)
        if EXACT in wanted and (self._abridger is not None or self._price is not None):
            which = "a gist at a price" if self._abridger is None else "a brief"
            raise UsageError(
                f"{which} leaves words out, so no layer {EXACT} can follow it: ask for {SEARCH} and {GIST}"
            )
        for parts in blocks:
            if len(parts) > BLOCK_PARTS or sum(map(len, parts)) > BLOCK_BYTES:
                raise UsageError(f"a block holds at most {BLOCK_PARTS} parts and {BLOCK_BYTES} bytes")
        result: list[Block] = []
        for some in in_batches(blocks, self.pack_batch):
            result.extend(self._encode_some(some, wanted, level, self._abridger))
        return result

    @one_at_a_time
    def decode_blocks(self, blocks: Sequence[Block]) -> list[list[bytes]]:
        """Exact bytes of every part. MissingLayerError without GIST and EXACT, or PLAIN of all parts;
        FormatError on damage."""
        whole = [PLAIN in b.layers and GIST not in b.layers for b in blocks]
        if any(whole):
            coded = iter(self.decode_blocks([b for b, w in zip(blocks, whole, strict=True) if not w]))
            return [
                self._plain.decode_parts(b.layers[PLAIN], b.count) if w else next(coded)
                for b, w in zip(blocks, whole, strict=True)
            ]
        result: list[list[bytes]] = []
        for some in self._open_blocks(blocks, (GIST, EXACT)):
            checksums = [Reader(b.layers[EXACT], "exact layer") for b in some.blocks]
            expected = [r.take(4) for r in checksums]
            with self._networks(some.lanes) as net:
                streams = [r.rest() for r in checksums]
                tokens = decode_exact(
                    net, some.lanes, some.gist, streams, some.detail, self.batch_size, some.side
                )
            for b, parts in enumerate(self._texts(some, tokens)):
                if _checksum(b"".join(parts)) != expected[b]:
                    raise FormatError("exact layer: the text does not match its checksum")
                result.append(parts)
        return result

    @one_at_a_time
    def read_gist(self, blocks: Sequence[Block]) -> list[list[str]]:
        """Approximate text of every part from the gist layer; the exact text of parts kept in PLAIN. Of a
        brief its words."""
        briefs = [self._brief_of(b) for b in blocks]
        if any(briefs):
            exact = iter(self.decode_blocks([b for b in briefs if b is not None]))
            others = iter(
                self.read_gist([b for b, found in zip(blocks, briefs, strict=True) if found is None])
            )
            return [
                next(others) if found is None else [p.decode("utf-8", "replace") for p in next(exact)]
                for found in briefs
            ]
        result: list[list[str]] = []
        for some in self._open_blocks(blocks, (GIST,)):
            with self._networks(some.lanes) as net:
                tokens = read_tokens(net, some.lanes, some.gist, some.detail, self.batch_size, some.side)
            result.extend(
                [p.decode("utf-8", "replace") for p in parts] for parts in self._texts(some, tokens)
            )
        return result

    def search_codes(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """(slots int64 [n], codes uint8 [n, M]) of the parts that have search codes, one code a passage."""
        if SEARCH not in block.layers:
            raise MissingLayerError("the search layer was not packed, or was stripped")
        return load_codes(block.layers[SEARCH], block.count, self._codebook.shape[0])

    def passages(self, parts: Sequence[bytes], counts: Sequence[int] | None = None) -> list[list[Span]]:
        """Byte ranges of the passages of each part; none where it is empty or no text.

        counts: how many each has; without, as this codec would code it. Ranges end at whole characters.
        """
        found = []
        for at, (part, tokens) in enumerate(zip(parts, self.model.tokenizer.encode(parts), strict=True)):
            patches = -(-len(tokens) // self._patch)
            if counts is not None:
                count = counts[at]
            else:
                count = 0 if _is_foreign(part, tokens) else self._count_passages(patches)
            ends = np.concatenate([[0], np.cumsum(self.model.tokenizer.lengths[tokens])])
            cuts = np.array(windows(patches, self._patch, count), np.int64).reshape(-1, 2) * self._patch
            edges = ends[np.minimum(cuts, len(tokens))]
            found.append([_whole_characters(part, start, end) for start, end in edges.tolist()])
        return found

    def _count_passages(self, patches: int) -> int:
        if self._passage_tokens is None:
            return min(1, patches)
        return count_passages(patches, self._patch, self._passage_tokens)

    @one_at_a_time
    def bits(self, texts: Sequence[str | bytes]) -> np.ndarray:
        """Code length of each text on its own in bits, float64 [N]: gist and exact layer, nothing around.

        Minus the log2 of the probability that the model gives the text; over its bytes, how foreign it is to
        the model.
        """
        tokens = self.model.tokenizer.encode(_all_as_bytes(texts))
        result = np.zeros(len(texts))
        for lo in range(0, len(texts), _SCORED_AT_ONCE):
            some = [[t] for t in tokens[lo : lo + _SCORED_AT_ONCE]]
            lanes = lay_out([[len(t)] for (t,) in some], self._segment, self._patch)
            table = _token_table(some, lanes, self._patch)
            coded = self._encoder.code(lanes, table, self._detail, exact=True)
            lengths = [lane.gist_bits() + lane.exact_bits() for lane in coded]
            np.add.at(result, lo + lanes.block, lengths)
        return result

    @one_at_a_time
    def vectors(self, texts: Sequence[str | bytes], dimensions: int | None = None) -> np.ndarray:
        """Unit vectors, float32 [N, D], in context; an empty text has the zero vector. A long text is pooled
        over its segments.

        dimensions: of shorter vectors [N, dimensions], for a store elsewhere, 1 to D; the first n of one are,
        but for their length, the vector of n. Compare them with others of that width. None: those that the
        codes stand for, which are not ordered so. Raises UsageError.
        """
        axes = None if dimensions is None else self._axes(dimensions)
        tokens = self.model.tokenizer.encode(_all_as_bytes(texts))
        sums = np.zeros((len(texts), self.model.config.vector))
        lanes = lay_out([[len(t)] for t in tokens], self._segment, self._patch)
        table = _token_table([[t] for t in tokens], lanes, self._patch)
        rows = [summands.sum(0) for summands in self._pool(lanes, table, True)]
        np.add.at(sums, lanes.block, np.array(rows).reshape(len(lanes), sums.shape[1]))
        whole = unit(sums)
        return whole if axes is None else shorten(whole, axes)

    def _axes(self, dimensions: int) -> np.ndarray:
        """Those of vectors of so many dimensions, [dimensions, D]."""
        width = self.model.config.vector
        if not 1 <= dimensions <= width:
            raise UsageError(f"vectors of {dimensions} dimensions: this model makes 1 to {width}")
        if self.model.axes is None:
            raise UsageError(f"this model makes vectors of {width} dimensions only: it has no axes.npy")
        return self.model.axes[:dimensions]

    def _in_context(self, layers: Sequence[str]) -> bool:
        """Whether vectors beside these layers are made in context."""
        return GIST in layers if self._context is None else self._context

    def _pool(self, lanes: Lanes, table: np.ndarray, context: bool) -> list[np.ndarray]:
        """Search summands of the patches of every lane, float64 [P, D], of the tokens int64 [L, T]."""
        texts = [table[i, :n] for i, n in enumerate(lanes.count)]
        expect_work(int(lanes.count.sum()))
        if self.model.config.search_encoder is None or not context:
            return [self.model.rows.patches(tokens, self._patch) for tokens in texts]
        model = self.model
        network: Network | None
        run: Run = in_turn
        if "torch" not in sys.modules:
            network = model.search_encoder
        elif sum(map(len, texts)) < _MANY_TOKENS:
            network = model.quick_encoder
        else:
            from colazip.nn.threads import each

            network, run = model.context_encoder, each
        assert network is not None
        return summands(model.rows, network, texts, self._patch, run)

    def plain_slots(self, block: Block) -> np.ndarray:
        """int64 [n]: the parts whose text is in PLAIN."""
        if PLAIN not in block.layers:
            return np.zeros(0, np.int64)
        if GIST not in block.layers:
            return np.arange(block.count)
        counts, _ = _split_gist(self._brief_of(block) or block, self.model.config)
        return np.flatnonzero(np.array(counts) < 0)

    def _brief_of(self, block: Block) -> Block | None:
        """The shorter texts of a brief gist, as a block of their own; None if the gist is none."""
        if GIST not in block.layers:
            return None
        details = self.model.config.details
        reader = Reader(block.layers[GIST], "gist layer")
        if reader.varint(details + 1) != details:
            return None
        layers = {GIST: reader.take(reader.varint(reader.left)), EXACT: reader.rest()}
        layers |= {name: block.layers[name] for name in (SEARCH, PLAIN) if name in block.layers}
        return Block(block.count, layers)

    # -- latents, for the prior

    @one_at_a_time
    def gists(self, block: Block) -> dict[int, Gist]:
        """The gist of each coded part of a block, by slot."""
        (some,) = self._open_blocks([block], (GIST,))
        lanes = some.lanes
        found: dict[int, list[tuple[int, np.ndarray]]] = {}
        for i in range(len(lanes)):
            piece = int(lanes.start[i]), some.gist[i, : lanes.count[i]]
            found.setdefault(int(lanes.part[i]), []).append(piece)
        result = {}
        for slot, pieces in found.items():
            tokens = np.concatenate([t for _, t in sorted(pieces, key=lambda s: s[0])])
            result[slot] = Gist(tokens, some.detail, some.side_of(slot, -(-len(tokens) // self._patch)))
        return result

    def plain_texts(self, block: Block) -> dict[int, str]:
        """Texts of the parts of a block with a gist that are kept in PLAIN instead: slot -> text."""
        (plain,) = _Opened([block], self).plain
        return {slot: data.decode("utf-8", "replace") for slot, data in plain.items()}

    @one_at_a_time
    def read_tokens(self, gists: Sequence[Gist]) -> list[np.ndarray]:
        """Readings of gists: the likeliest tokens behind them, int64 [T] each."""
        result = [np.zeros(0, np.int64)] * len(gists)
        for detail, told in {(g.detail, g.side is not None) for g in gists}:
            which = [i for i, g in enumerate(gists) if (g.detail, g.side is not None) == (detail, told)]
            lanes = lay_out([[len(gists[i].tokens)] for i in which], self._segment, self._patch)
            table = _token_table([[gists[i].tokens] for i in which], lanes, self._patch)
            side = self._cut([gists[i].side for i in which], lanes) if told else None
            with self._networks(lanes) as net:
                read = read_tokens(net, lanes, table, detail, self.batch_size, side)
            pieces: dict[int, list[tuple[int, np.ndarray]]] = {}
            for lane, tokens in enumerate(read):
                pieces.setdefault(int(lanes.block[lane]), []).append((int(lanes.start[lane]), tokens))
            for b, mine in pieces.items():
                result[which[b]] = np.concatenate([t for _, t in sorted(mine, key=lambda s: s[0])])
        return result

    def _cut(self, parts: Sequence[Side | None], lanes: Lanes) -> Side:
        """What parts were coded given, one lane each, for the lanes that they are cut into; their numbers are
        those of the blocks."""
        cut = []
        for block, start, patches in zip(lanes.block, lanes.start, lanes.patches, strict=True):
            side, at = parts[block], int(start) // self._patch
            assert side is not None
            cut.append(side.patches(at, at + int(patches)))
        return joined(cut)

    # -- encoding

    def _encode_some(
        self,
        blocks: Sequence[Sequence[bytes]],
        layers: tuple[str, ...],
        level: int,
        abridger: Abridger | None = None,
        codes: Sequence[Codes] | None = None,
    ) -> list[Block]:
        """Blocks within their bounds. abridger: what makes the briefs that a gist shall be. codes: search
        codes of each block that are known already and that a gist is to be coded given."""
        if layers == (PLAIN,):
            return [Block(len(parts), {PLAIN: self._plain.encode_parts(parts, level)}) for parts in blocks]
        coded_tokens = iter(self.model.tokenizer.encode([part for parts in blocks for part in parts]))
        tokens = [[next(coded_tokens) for _ in parts] for parts in blocks]
        foreign = [
            {p for p, (part, t) in enumerate(zip(parts, tokens[b], strict=True)) if _is_foreign(part, t)}
            for b, parts in enumerate(blocks)
        ]
        lanes = self._lay_out(tokens, foreign)
        table = _token_table(tokens, lanes, self._patch)
        thrifty = GIST in layers and EXACT not in layers and self._price is not None
        if SEARCH in layers and GIST in layers and self.conditional:
            codes = self._codes(len(blocks), lanes, table, self._in_context(layers))
        if GIST in layers and abridger is None and not thrifty:
            return self._encode_text(blocks, layers, level, tokens, foreign, lanes, table, codes)
        # Alone, beside plain text or beside shorter texts, vectors need no coder.
        result: list[dict[str, bytes]] = [{} for _ in blocks]
        if thrifty:
            result = self._encode_thriftily(blocks, level, tokens, foreign, codes)
        elif abridger is not None and GIST in layers:
            result = self._encode_briefs(blocks, level, tokens, foreign, abridger, codes)
        if SEARCH in layers and codes is None:
            codes = self._codes(len(blocks), lanes, table, self._in_context(layers))
        for b, (parts, made) in enumerate(zip(blocks, result, strict=True)):
            if SEARCH in layers and codes is not None:
                made[SEARCH] = dump_codes(len(parts), *codes[b])
            if PLAIN in layers:
                made[PLAIN] = self._plain.encode_parts(parts, level)
        return [Block(len(parts), made) for parts, made in zip(blocks, result, strict=True)]

    def _encode_briefs(
        self,
        blocks: Sequence[Sequence[bytes]],
        level: int,
        tokens: Sequence[Sequence[np.ndarray]],
        foreign: Sequence[set[int]],
        abridger: Abridger,
        codes: Sequence[Codes] | None,
    ) -> list[dict[str, bytes]]:
        """Layers of blocks whose gist is a brief: shorter texts, coded exactly. tokens, foreign, codes: as
        `_encode_text` takes them."""
        briefs = [
            [
                part if p in foreign[b] else abridger.abridge(part, tokens[b][p])
                for p, part in enumerate(parts)
            ]
            for b, parts in enumerate(blocks)
        ]
        result = []
        for block in self._encode_some(briefs, (GIST, EXACT), level, codes=codes):
            made = dict(block.layers)
            gist = made[GIST]
            made[GIST] = varint(self.model.config.details) + varint(len(gist)) + gist + made.pop(EXACT)
            result.append(made)
        return result

    def _encode_thriftily(
        self,
        blocks: Sequence[Sequence[bytes]],
        level: int,
        tokens: Sequence[Sequence[np.ndarray]],
        foreign: Sequence[set[int]],
        codes: Sequence[Codes] | None,
    ) -> list[dict[str, bytes]]:
        """Gists of what is worth its price. tokens, foreign, codes: as `_encode_text` takes them."""
        left = self._economize(blocks, tokens, foreign, codes)
        lanes = self._lay_out(left, foreign)
        table = _token_table(left, lanes, self._patch)
        made = self._encode_text(blocks, (GIST,), level, left, foreign, lanes, table, codes)
        return [dict(block.layers) for block in made]

    def _economize(
        self,
        blocks: Sequence[Sequence[bytes]],
        tokens: Sequence[Sequence[np.ndarray]],
        foreign: Sequence[set[int]],
        codes: Sequence[Codes] | None,
    ) -> list[list[np.ndarray]]:
        """The tokens that are worth the price, of each part of each block; of foreign ones none."""
        assert self._price is not None
        nothing = np.zeros(0, np.int64)
        own = [
            nothing if p in foreign[b] else part_tokens
            for b, of in enumerate(tokens)
            for p, part_tokens in enumerate(of)
        ]
        sizes = [len(parts) for parts in blocks]

        def nested(flat: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
            waiting = iter(flat)
            return [[next(waiting) for _ in range(size)] for size in sizes]

        texts = [part for parts in blocks for part in parts]
        left = economize(
            texts,
            own,
            self.model.tokenizer.lengths,
            self._price,
            lambda flat: self._judge(nested(flat), codes),
        )
        return nested(left)

    def _judge(
        self, tokens: Sequence[Sequence[np.ndarray]], codes: Sequence[Codes] | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each part, block after block: bits of its tokens in the gist, float64 [T], and which of them the
        gist's reading has right, bool [T]."""
        lanes = self._lay_out(tokens, [set() for _ in tokens])
        table = _token_table(tokens, lanes, self._patch)
        side = self._side(lanes, codes)
        coded = self._encoder.code(lanes, table, self._detail, exact=False, side=side)
        gist = self.model.cells.named(table, self._detail)
        with self._networks(lanes) as net:
            read = read_tokens(net, lanes, gist, self._detail, self.batch_size, side)
        found = [[(np.zeros(len(t)), np.zeros(len(t), bool)) for t in parts] for parts in tokens]
        for i, (symbols, seen) in enumerate(zip(coded, read, strict=True)):
            bits, right = found[lanes.block[i]][lanes.part[i]]
            here = slice(int(lanes.start[i]), int(lanes.start[i] + lanes.count[i]))
            np.add.at(bits[here], symbols.moments // 2, cost_bits(symbols.gist[1]))
            right[here] = seen == table[i, : lanes.count[i]]
        return [part for parts in found for part in parts]

    def _lay_out(self, tokens: Sequence[Sequence[np.ndarray]], foreign: Sequence[set[int]]) -> Lanes:
        """Lanes of the parts of blocks but the foreign ones."""
        counts = [[0 if p in foreign[b] else len(t) for p, t in enumerate(of)] for b, of in enumerate(tokens)]
        return lay_out(counts, self._segment, self._patch)

    def _encode_text(
        self,
        blocks: Sequence[Sequence[bytes]],
        layers: tuple[str, ...],
        level: int,
        tokens: Sequence[Sequence[np.ndarray]],
        foreign: Sequence[set[int]],
        lanes: Lanes,
        table: np.ndarray,
        codes: Sequence[Codes] | None,
    ) -> list[Block]:
        """Blocks with a gist. tokens: of each part; foreign: parts that have no lanes; table int64 [L, T];
        codes: search codes of each block that the text is coded given, if it is."""
        side = self._side(lanes, codes)
        coded = self._encoder.code(lanes, table, self._detail, exact=EXACT in layers, side=side)
        if SEARCH in layers and codes is None:
            codes = self._codes(len(blocks), lanes, table, self._in_context(layers))
        plain = [
            foreign[b] | self._choose_plain(b, parts, level, lanes, coded) for b, parts in enumerate(blocks)
        ]
        alive = [i for i in range(len(lanes)) if lanes.part[i] not in plain[lanes.block[i]]]
        kept = lanes.subset(alive)
        rows = [coded[i] for i in alive]
        # Parts that went to PLAIN are not in the memory that the decoder will have: their blocks again.
        again = [i for i in range(len(kept)) if plain[kept.block[i]] > foreign[kept.block[i]]]
        if again:
            exact = EXACT in layers
            renewed = self._encoder.code(
                kept.subset(again),
                table[alive][again],
                self._detail,
                exact=exact,
                side=None if side is None else side.subset([alive[i] for i in again]),
            )
            for i, row in zip(again, renewed, strict=True):
                rows[i] = row
        gist = self._streams(len(blocks), kept, [r.gist_symbols() for r in rows])
        rest = self._streams(len(blocks), kept, [r.exact_symbols() for r in rows]) if EXACT in layers else []
        result = []
        for b, parts in enumerate(blocks):
            made: dict[str, bytes] = {}
            if SEARCH in layers and codes is not None:
                made[SEARCH] = dump_codes(len(parts), *codes[b])
            counts_head = varints(0 if p in plain[b] else len(t) + 1 for p, t in enumerate(tokens[b]))
            made[GIST] = self._gist_head(side is not None) + counts_head + gist[b]
            if EXACT in layers:
                made[EXACT] = _checksum(b"".join(parts)) + rest[b]
            if plain[b]:
                made[PLAIN] = self._plain.encode_parts([parts[p] for p in sorted(plain[b])], level)
            result.append(Block(len(parts), made))
        return result

    def _choose_plain(
        self, b: int, parts: Sequence[bytes], level: int, lanes: Lanes, coded: list[Coded]
    ) -> set[int]:
        """Parts of a block that a classical coder stores in fewer bytes than the networks."""
        bits: dict[int, float] = {}
        for i in np.flatnonzero(lanes.block == b).tolist():
            part = int(lanes.part[i])
            bits[part] = bits.get(part, 0.0) + coded[i].gist_bits() + coded[i].exact_bits()
        return {p for p, cost in bits.items() if self._is_smaller(parts[p], cost / 8.0, level)}

    def _is_smaller(self, part: bytes, size: float, level: int) -> bool:
        """Whether zstd stores a part in at most `size` bytes; a quick try tells where it surely can't."""
        if len(self._plain.encode(part, _PROBE)[1]) > _PROBE_GAIN * size:
            return False
        return len(self._plain.encode(part, level)[1]) <= size

    def _gist_head(self, conditional: bool) -> bytes:
        """What a gist layer begins with. conditional: whether it is coded given search codes."""
        if not conditional:
            return varint(self._detail)
        return varint(self.model.config.details + 1) + varint(self._detail) + varint(len(self._codebook))

    def _side(self, lanes: Lanes, codes: Sequence[Codes] | None) -> Side | None:
        """What lanes are coded given, if anything. codes: of each block."""
        if codes is None:
            return None
        return beside(lanes, [(slots, read_codes(c, self._codebook)) for slots, c in codes], self._patch)

    def _codes(self, count: int, lanes: Lanes, table: np.ndarray, context: bool) -> list[Codes]:
        """Codes of the passages of each of `count` blocks, of all parts that have lanes. table: int64 [L,
        T]."""
        order = np.lexsort((lanes.start, lanes.part, lanes.block))
        ends = np.cumsum(lanes.patches[order])
        owner = np.stack([lanes.block, lanes.part], 1)[order]
        last = np.flatnonzero(np.append((owner[1:] != owner[:-1]).any(1), [True] * bool(len(order))))
        slots: list[list[int]] = [[] for _ in range(count)]
        spans: list[tuple[int, int]] = []  # of all passages, in the patches of all lanes
        first = 0
        for (b, part), end in zip(owner[last].tolist(), ends[last].tolist(), strict=True):
            own = windows(end - first, self._patch, self._count_passages(end - first))
            spans += [(first + lo, first + hi) for lo, hi in own]
            slots[b] += [part] * len(own)
            first = end
        sums = self._passage_sums(lanes, table, order, spans, context)
        if self.device == "cpu":
            codes = assign_codes(unit(sums), self._codebook)
        else:
            from colazip.nn import gpu_context

            codes = gpu_context.assign_codes(unit(sums), self._codebook, self.device)
        cuts = np.cumsum([len(of_block) for of_block in slots])[:-1]
        return [(np.array(s, np.int64), c) for s, c in zip(slots, np.split(codes, cuts), strict=True)]

    def _passage_sums(
        self,
        lanes: Lanes,
        table: np.ndarray,
        order: np.ndarray,
        spans: Sequence[tuple[int, int]],
        context: bool,
    ) -> np.ndarray:
        """What spans of the patches of all lanes, in the order int64 [L], add up to: float64 [C, D]."""
        if self.device != "cpu":
            texts = [table[i, : lanes.count[i]] for i in order]
            return self._device_sums(texts, np.array(spans, np.int64).reshape(-1, 2), context=context)
        pooled = self._pool(lanes, table, context)
        ends = np.cumsum(lanes.patches[order])
        found = np.zeros((len(spans), self.model.config.vector))
        for total, (lo, hi) in zip(found, spans, strict=True):
            first, last = np.searchsorted(ends, (lo, hi - 1), "right").tolist()
            for i in range(first, last + 1):
                own, start = pooled[order[i]], int(ends[i] - lanes.patches[order[i]])
                # Multiples of 1 / 256 far below 2**53: these sums are exact in any order.
                total += own[max(0, lo - start) : hi - start].sum(0)
        return found

    @staticmethod
    def _streams(count: int, lanes: Lanes, symbols: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[bytes]:
        """One entropy-coded stream a block. symbols: for each lane its pairs [2, n] and their moments int64
        [n].

        Symbols of a block are coded in the order of their moments; at one moment, lanes in their order.
        """
        streams = []
        for b in range(count):
            mine = np.flatnonzero(lanes.block == b).tolist()
            if not mine:
                streams.append((np.zeros(0, np.uint32), np.zeros(0, np.uint32)))
                continue
            pairs = np.concatenate([symbols[i][0] for i in mine], axis=1)
            moments = np.concatenate([symbols[i][1] for i in mine])
            order = np.argsort(moments, kind="stable")
            streams.append((pairs[0, order], pairs[1, order]))
        return encode_streams(streams)

    # -- decoding

    def _open_blocks(self, blocks: Sequence[Block], layers: Sequence[str]) -> Iterator[_Opened]:
        for name in layers:
            if any(name not in b.layers for b in blocks):
                raise MissingLayerError(f"the {name} layer was not packed, or was stripped")
        alike = groupby(blocks, key=lambda b: _gist_head(b, self.model.config)[0])
        for batch in (batch for _, run in alike for batch in in_batches(run, self.read_batch)):
            some = _Opened(batch, self)
            with self._networks(some.lanes) as net:
                some.gist = decode_gist(
                    net, self.model.config, some.lanes, some.gist_streams, some.detail, some.side
                )
            yield some

    def _texts(self, some: _Opened, tokens: Sequence[np.ndarray]) -> list[list[bytes]]:
        """Parts of each block from the tokens of its lanes and its plain frames."""
        pieces: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        decode = self.model.tokenizer.decode
        for i, t in enumerate(tokens):
            key = int(some.lanes.block[i]), int(some.lanes.part[i])
            pieces.setdefault(key, []).append((int(some.lanes.start[i]), decode(t.tolist())))
        result = []
        for b, block in enumerate(some.blocks):
            parts = []
            for p in range(block.count):
                if p in some.plain[b]:
                    parts.append(some.plain[b][p])
                else:
                    parts.append(b"".join(text for _, text in sorted(pieces.get((b, p), []))))
            result.append(parts)
        return result


class _Opened:
    """Blocks taken apart, whose gists begin alike: lanes, streams and plain frames; every length checked
    before it is used.

    side: what the lanes were coded given, if anything.
    """

    def __init__(self, blocks: Sequence[Block], codec: Codec) -> None:
        config = codec.model.config
        self.blocks = list(blocks)
        (self.detail, size), _ = _gist_head(self.blocks[0], config)
        self.plain: list[dict[int, bytes]] = []
        self.gist_streams: list[bytes] = []
        self.gist = np.zeros((0, 0), np.int64)  # tokens of every lane [L, P * K]
        counts = []
        for block in self.blocks:
            tokens, stream = _split_gist(block, config)
            self.gist_streams.append(stream)
            counts.append(tokens)
            slots = [p for p, t in enumerate(tokens) if t < 0]
            kept = codec._plain.decode_parts(block.layers.get(PLAIN, b""), len(slots)) if slots else []
            if not slots and PLAIN in block.layers:
                raise FormatError("plain layer: the gist says that no part is in it")
            self.plain.append(dict(zip(slots, kept, strict=True)))
        self.lanes = lay_out(counts, codec._segment, codec._patch)
        self.side: Side | None = None
        self._known: list[tuple[np.ndarray, np.ndarray]] = []
        if size is not None:
            codebook = codec.model.codebooks[size]
            self._known = [_vectors_beside(block, codebook) for block in self.blocks]
            try:
                self.side = beside(self.lanes, self._known, codec._patch)
            except ValueError as e:
                raise FormatError(f"search layer: {e}, and its gist was coded given one") from e

    def side_of(self, slot: int, patches: int) -> Side | None:
        """What a part of the first block, of so many patches, was coded given, if anything."""
        if not self._known:
            return None
        slots, vectors = self._known[0]
        return of_part(vectors[slots == slot], patches)


def _vectors_beside(block: Block, codebook: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(parts that have search codes, int64 [n]; what the codes stand for, float32 [n, D])."""
    if SEARCH not in block.layers:
        raise MissingLayerError(
            "the gist was coded given the search codes beside it, and they are not here: read both layers"
        )
    slots, codes = load_codes(block.layers[SEARCH], block.count, len(codebook))
    if len(slots) > BLOCK_BYTES:  # what they stand for takes forty times their room
        raise FormatError(f"search layer: {len(slots)} codes, more than a block has tokens")
    return slots, read_codes(codes, codebook)


def _gist_head(block: Block, config: ModelConfig) -> tuple[tuple[int, int | None], Reader]:
    """Detail of a block's gist and the bytes of the search codes that it was coded given (None: of none), and
    what follows."""
    reader = Reader(block.layers[GIST], "gist layer")
    kind = reader.varint(config.details + bool(config.conditional))
    if kind == config.details:
        raise MissingLayerError(
            "the gist is a brief, which has words and no latents: pack the source without brief"
        )
    if kind < config.details:
        return (kind, None), reader
    detail, size = reader.varint(config.details - 1), reader.varint(max(config.codes))
    if size not in config.codes:
        raise FormatError(f"gist layer: coded given search codes of {size} bytes, which this model has not")
    return (detail, size), reader


def _split_gist(block: Block, config: ModelConfig) -> tuple[list[int], bytes]:
    """Token count of each part (-1: kept in PLAIN) and the stream of a gist layer."""
    if not 0 <= block.count <= BLOCK_PARTS:
        raise FormatError(f"a block of {block.count} parts, at most {BLOCK_PARTS} can be")
    _, reader = _gist_head(block, config)
    tokens = [reader.varint(BLOCK_BYTES + 1) - 1 for _ in range(block.count)]
    if sum(t for t in tokens if t > 0) > BLOCK_BYTES:
        raise FormatError("gist layer: more tokens than a block can hold")
    return tokens, reader.rest()


def _codebook(model: Model, size: int) -> np.ndarray:
    """Centroids of codes of `size` bytes. Raises UsageError if the model makes none."""
    if size not in model.config.codes:
        sizes = " or ".join(map(str, model.config.codes))
        raise UsageError(f"search codes of {size} bytes: this model makes codes of {sizes}")
    return model.codebooks[size]


def _check_device(name: str) -> None:
    """UsageError for a device that torch does not have."""
    import torch

    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r}: must be cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: torch finds no GPU here; leave the device out to use the CPU")


def _is_foreign(part: bytes, tokens: np.ndarray) -> bool:
    """Whether a part is no text that the tokens were made for."""
    return len(part) >= _FOREIGN_BYTES and len(tokens) > _FOREIGN_TOKENS * len(part)


def _whole_characters(text: bytes, start: int, end: int) -> Span:
    """A range widened so that it cuts no UTF-8 character, whose first byte is at most 3 bytes away."""
    for _ in range(3):
        start -= 0 < start < len(text) and text[start] & 0xC0 == 0x80
        end += end < len(text) and text[end] & 0xC0 == 0x80
    return start, end


def _as_bytes(record: str | bytes) -> bytes:
    if isinstance(record, str):
        return record.encode("utf-8", "surrogatepass")
    if not isinstance(record, bytes | bytearray | memoryview):
        raise UsageError(f"a record is text or bytes, not {type(record).__name__}")
    return bytes(record)


def _all_as_bytes(records: Sequence[str | bytes]) -> list[bytes]:
    if isinstance(records, str | bytes | bytearray | memoryview):
        raise UsageError("several records are wanted, not one: put it into a list")
    return [_as_bytes(record) for record in records]


def _token_table(tokens: Sequence[Sequence[np.ndarray]], lanes: Lanes, patch: int) -> np.ndarray:
    """Tokens of every lane, int64 [L, P * K], zero behind its end."""
    table = np.zeros((len(lanes), int(lanes.patches.max(initial=0)) * patch), np.int64)
    for i in range(len(lanes)):
        start, count = lanes.start[i], lanes.count[i]
        table[i, :count] = tokens[lanes.block[i]][lanes.part[i]][start : start + count]
    return table


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")
