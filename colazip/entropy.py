"""Symbols to bytes and back: interleaved rANS over integer tables (Duda 2013, Giesen 2014).

A symbol is an interval (start, freq) of [0, 2**PRECISION). States are 64-bit, words 32-bit. Symbol number i
of a stream, in decoding order, belongs to state i mod S.

    encode  if x >> 44 >= freq: push the low 32 bits of x, x >>= 32
            x = (x // freq << 20) + start + x % freq
    decode  slot = x mod 2**20, which names the symbol
            x = freq * (x >> 20) + slot - start
            if x < 2**32: x = x << 32 | next word

The encoder walks backwards, so words lie in the order in which the decoder wants them. A stream is, in bytes:

    several states  S (one byte, 2..16); S states, 8 bytes each; words, 4 bytes each
    one state       the byte 1, only if the byte after it would otherwise read as a number of states (1..16);
                    the state without its leading zero bytes; words, 4 bytes each
    nothing         no bytes: one state at its origin and no words; symbols of 0 bits leave this too

All integers are little-endian. A state starts, for the encoder, and has to end, for the decoder, at its
origin: 2**32 if there are several, 2**20 if there is one. A single state is always the one that reads the
next word, so it may sink below 2**32 once no word is left. No length is stored: a state with words behind it
is at least 2**32, so it has 5 to 8 bytes, and the length of the stream modulo 4 says how many; 8 bytes or
fewer are all state. Against the layout for several states this saves a short stream about 4 bytes.

Coding never makes a state smaller, and makes it larger for every symbol of more than 0 bits. So a decoder
that has run past the words sinks below the origin and is caught at once. A wrong number of symbols, or
damage, leaves words unread or a state off its origin, and is caught by `StreamDecoder.finish` but for a
chance of about 1 in 2**20 (one state) or 2**(32 * S). It does not replace a checksum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from colazip.errors import FormatError

PRECISION = 20
MAX_STATES = 16

CUT_SHORT = "it ends before its symbols do"  # how a stream is damaged that looked well

_TOTAL = 1 << PRECISION
_ORIGIN_ALONE = 1 << 20
_ORIGIN_SHARED = 1 << 32

# NumPy scalars, so that no expression below leaves uint64 under the promotion rules of NumPy 1 or 2.
_MASK = np.uint64(_TOTAL - 1)
_SHIFT = np.uint64(PRECISION)
_WORD_BITS = np.uint64(32)
_WORD_BITS_LOG2 = np.uint64(5)
_REFILL_BELOW = np.uint64(1 << 32)
_FULL_SHIFT = np.uint64(64 - PRECISION)

# Up to this many table entries, comparing the slot with all of them beats a binary search (measured).
_SCAN_ENTRIES = 16 * 1024


def state_count(symbols: int) -> int:
    """Interleaved states of a stream of so many symbols.

    More of them decode faster but cost about 6 bytes each, and the networks, not the coder, take the time.
    """
    return min(max(symbols // 8192, 1), MAX_STATES)


def cost_bits(freq: np.ndarray) -> np.ndarray:
    """Ideal cost, in bits, of symbols of these frequencies: float64, the shape of `freq`."""
    return PRECISION - np.log2(np.asarray(freq, dtype=np.float64))


def encode_streams(streams: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[bytes]:
    """Code every stream of (start, freq), integers [n] each, in decoding order.

    All streams advance together, so many at a time are cheaper than one after the other; the bytes of a
    stream do not depend on what it is coded with. ValueError unless start >= 0, freq >= 1 and start + freq <=
    2**PRECISION.
    """
    if not streams:
        return []
    sizes = np.array([len(start) for start, _ in streams], dtype=np.int64)
    starts = np.concatenate([np.asarray(start) for start, _ in streams]).astype(np.int64)
    freqs = np.concatenate([np.asarray(freq) for _, freq in streams]).astype(np.int64)
    if starts.shape != freqs.shape or any(len(start) != len(freq) for start, freq in streams):
        raise ValueError("start and freq differ in shape")
    if len(freqs) and (freqs.min() < 1 or starts.min() < 0 or (starts + freqs).max() > _TOTAL):
        raise ValueError(f"an interval lies outside [0, 2**{PRECISION}) or is empty")

    counts = np.array([state_count(size) for size in sizes.tolist()], dtype=np.int64)
    offsets = np.cumsum(sizes) - sizes
    first_lanes = np.cumsum(counts) - counts
    states, pushed, words = _encode_lanes(
        starts.astype(np.uint64), freqs.astype(np.uint64), sizes, counts, offsets, first_lanes
    )
    coded = []
    for size, count, offset, lane in zip(sizes, counts, offsets, first_lanes, strict=True):
        part = slice(offset, offset + size)
        coded.append(_pack(states[lane : lane + count], words[part][pushed[part]]))
    return coded


def _encode_lanes(
    starts: np.ndarray,
    freqs: np.ndarray,
    sizes: np.ndarray,
    counts: np.ndarray,
    offsets: np.ndarray,
    first_lanes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run all states of all streams backwards over their symbols, one symbol of each a round.

    starts, freqs: uint64 [N], all streams end to end. sizes, counts, offsets, first_lanes: int64 [streams],
    where a lane is one state of one stream. Returns the final states, uint64 [lanes]; whether a symbol pushed
    a word, bool [N]; the words, uint32 [N].
    """
    owner = np.repeat(np.arange(len(sizes)), counts)
    rank = np.arange(len(owner)) - first_lanes[owner]
    stride = counts[owner]
    length = (sizes[owner] - rank + stride - 1) // stride  # symbols of each lane
    # Longest lanes first: those still at work in a round are then a prefix.
    order = np.argsort(-length, kind="stable")
    length, stride = length[order], stride[order]
    cursor = offsets[owner[order]] + rank[order] + stride * (length - 1)
    state = np.where(stride == 1, np.uint64(_ORIGIN_ALONE), np.uint64(_ORIGIN_SHARED))
    rounds = int(length[0])
    active = np.searchsorted(-length, -np.arange(rounds), side="left").tolist()

    pushed = np.zeros(len(freqs), dtype=bool)
    words = np.zeros(len(freqs), dtype=np.uint32)
    gaps = np.uint64(_TOTAL) - freqs
    for lanes in active:
        at = cursor[:lanes]
        x = state[:lanes]
        freq = freqs.take(at)
        full = (x >> _FULL_SHIFT) >= freq
        pushed[at] = full
        words[at] = x.astype(np.uint32)  # the low half; meaningless where nothing is pushed
        x >>= full.astype(np.uint64) << _WORD_BITS_LOG2
        # (x // freq << 20) + x % freq + start, with one division and one multiplication
        x += x // freq * gaps.take(at) + starts.take(at)
        at -= stride[:lanes]

    final = np.empty_like(state)
    final[order] = state
    return final, pushed, words


def _pack(states: np.ndarray, words: np.ndarray) -> bytes:
    """Bytes of one stream from its final states, uint64 [S], and its words, uint32 [W], in reading order."""
    tail = words.astype("<u4").tobytes()
    if len(states) > 1:
        return bytes([len(states)]) + states.astype("<u8").tobytes() + tail
    if states[0] == _ORIGIN_ALONE and not tail:
        return b""
    body = states.astype("<u8").tobytes().rstrip(b"\0") + tail
    return b"\1" + body if 1 <= body[0] <= MAX_STATES else body


def damaged(number: int, how: str) -> FormatError:
    """What is raised of stream `number`."""
    return FormatError(f"entropy stream {number} is damaged: {how}")


def _unpack(data: bytes, number: int) -> tuple[np.ndarray, np.ndarray]:
    """States, uint64 [S], and words, uint32 [W], of one stream; `number` goes into FormatError's message."""
    if not data:
        return np.array([_ORIGIN_ALONE], dtype=np.uint64), np.empty(0, dtype=np.uint32)
    count = data[0]
    if 2 <= count <= MAX_STATES:
        split = 1 + 8 * count
        if len(data) < split or (len(data) - split) % 4:
            raise damaged(number, f"{len(data)} bytes for {count} states")
        states = np.frombuffer(data, dtype="<u8", count=count, offset=1).astype(np.uint64)
        if (states < _ORIGIN_SHARED).any():
            raise damaged(number, "a state is out of range")
    else:
        # A sequence of symbols has one encoding: a needless mark, zero byte or state is damage.
        body = 1 if count == 1 else 0
        marked = body < len(data) and 1 <= data[body] <= MAX_STATES
        size = len(data) - body
        split = body + (size if size <= 8 else 5 + (size - 5) % 4)
        state = int.from_bytes(data[body:split], "little")
        if marked != (body == 1) or data[split - 1] == 0 or state <= _ORIGIN_ALONE:
            raise damaged(number, "its state is out of range")
        states = np.array([state], dtype=np.uint64)
    return states, np.frombuffer(data, dtype="<u4", offset=split).astype(np.uint32)


def check_tables(stream: np.ndarray, cdf: np.ndarray) -> None:
    """ValueError unless tables [n, A + 1] or [A + 1] fit the symbols int64 [n]."""
    if cdf.dtype.kind not in "iu" or cdf.ndim not in (1, 2) or (cdf.ndim == 2 and len(cdf) != len(stream)):
        raise ValueError(f"cdf is {cdf.dtype} {cdf.shape} for {len(stream)} symbols")


class StreamDecoder:
    """Decodes many streams side by side, in as many calls of `decode` as the caller's model needs.

    The symbols do not depend on how they are grouped into calls. Call `finish` after the last of them: damage
    that did not show before shows there. After an error the decoder is of no further use.
    """

    def __init__(self, streams: Sequence[bytes]) -> None:
        """Take in the bytes of every stream. FormatError if they can't be what `encode_streams` returns."""
        parts = [_unpack(bytes(data), number) for number, data in enumerate(streams)]
        self._count = np.array([len(states) for states, _ in parts], dtype=np.int64)
        self._first_lane = np.cumsum(self._count) - self._count
        self._origin = np.where(self._count == 1, np.uint64(_ORIGIN_ALONE), np.uint64(_ORIGIN_SHARED))
        self._turn = np.zeros(len(parts), dtype=np.int64)  # which state of a stream has the next symbol
        self._state = (
            np.concatenate([states for states, _ in parts]) if parts else np.empty(0, dtype=np.uint64)
        )
        self._words = np.concatenate([words for _, words in parts]) if parts else np.empty(0, dtype=np.uint32)
        lengths = np.array([len(words) for _, words in parts], dtype=np.int64)
        self._end = np.cumsum(lengths)
        self._cursor = self._end - lengths

    def decode(self, stream: np.ndarray, cdf: np.ndarray) -> np.ndarray:
        """Next symbols, int64 [n].

        stream: int64 [n], the stream of each symbol, non-decreasing; within a stream, symbols in order.
        Streams may be left out. cdf: integers [n, A + 1], or [A + 1] if all symbols share a table; each row
        rises from 0 to 2**PRECISION, strictly where a symbol may occur. int32 in C order is fastest.
        ValueError if the shapes do not fit; values are not checked, but none can index out of bounds.
        FormatError if a stream turns out to hold fewer symbols.
        """
        check_tables(stream, cdf)
        size = len(stream)
        if not size:
            return np.empty(0, dtype=np.int64)
        if size == 1:
            return np.array([self._decode_one(int(stream[0]), cdf.reshape(-1))])
        per_stream = np.bincount(stream, minlength=len(self._count))
        index = np.arange(size) - (np.cumsum(per_stream) - per_stream)[stream]
        count = self._count[stream]
        lane = self._first_lane[stream] + (self._turn[stream] + index) % count
        self._turn = (self._turn + per_stream) % self._count
        if (per_stream <= self._count).all():
            return self._decode_round(stream, lane, cdf)

        # A state decodes one symbol a round. The sort is stable: words are read in the order of the symbols.
        turn = index // count
        order = np.argsort(turn, kind="stable")
        bounds = np.cumsum(np.bincount(turn)).tolist()
        symbols = np.empty(size, dtype=np.int64)
        begin = 0
        for end in bounds:
            part = order[begin:end]
            table = cdf if cdf.ndim == 1 else cdf[part]
            symbols[part] = self._decode_round(stream[part], lane[part], table)
            begin = end
        return symbols

    def finish(self) -> None:
        """FormatError unless every state is back at its origin and every word was read."""
        off = self._state != np.repeat(self._origin, self._count)
        wrong = np.repeat(np.arange(len(self._count)), self._count)[off]
        unread = np.flatnonzero(self._cursor != self._end)
        if len(wrong) or len(unread):
            number = min(wrong.tolist() + unread.tolist())
            raise damaged(number, "it does not end where its symbols do")

    def _decode_one(self, stream: int, cdf: np.ndarray) -> int:
        """The next symbol of one stream: what `_decode_round` does, in Python's integers, of which few are
        faster than small arrays. cdf: integers [A + 1]."""
        turn = int(self._turn[stream])
        lane = int(self._first_lane[stream]) + turn
        self._turn[stream] = (turn + 1) % int(self._count[stream])
        x = int(self._state[lane])
        slot = x & _TOTAL - 1
        symbol = int(cdf[1:-1].searchsorted(slot, "right"))
        low, high = int(cdf[symbol]), int(cdf[symbol + 1])
        x = (x >> PRECISION) * (high - low) + slot - low & (1 << 64) - 1
        if x < 1 << 32:
            at = int(self._cursor[stream])
            if at < self._end[stream]:
                x = x << 32 | int(self._words[at])
                self._cursor[stream] = at + 1
            elif x < self._origin[stream]:
                raise damaged(stream, CUT_SHORT)
        self._state[lane] = x
        return symbol

    def _decode_round(self, stream: np.ndarray, lane: np.ndarray, cdf: np.ndarray) -> np.ndarray:
        """One symbol of each lane, int64 [n]; no lane occurs twice. Shapes as in `decode`."""
        x = self._state[lane]
        slot = x & _MASK
        symbol, low, high = _look_up(cdf, slot.astype(cdf.dtype))
        low = low.astype(np.uint64)
        x >>= _SHIFT
        x *= high.astype(np.uint64) - low
        x += slot - low
        short = np.flatnonzero(x < _REFILL_BELOW)
        if len(short):
            self._refill(x, short, stream[short])
        self._state[lane] = x
        return symbol

    def _refill(self, x: np.ndarray, short: np.ndarray, owner: np.ndarray) -> None:
        """Shift the next word of its stream into x[short]; owner: the stream of each, non-decreasing."""
        wanted = np.bincount(owner, minlength=len(self._count))
        at = (self._cursor - np.cumsum(wanted) + wanted)[owner] + np.arange(len(owner))
        self._cursor = self._cursor + wanted
        if (self._cursor > self._end).any():
            there = at < self._end[owner]
            below = x[short] < self._origin[owner]
            if (below & ~there).any():
                number = owner[below & ~there][0]
                raise damaged(number, CUT_SHORT)
            self._cursor = np.minimum(self._cursor, self._end)
            short, at = short[there], at[there]
        x[short] = x[short] << _WORD_BITS | self._words[at]


def _look_up(cdf: np.ndarray, slot: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Symbols whose intervals hold the slots [n], int64 [n], and both ends of the intervals, [n] each.

    Whatever the tables hold, the symbol is in 0..A - 1, so that bad tables can't index out of bounds.
    """
    if cdf.ndim == 1:
        symbol = np.searchsorted(cdf[1:-1], slot, side="right")
        return symbol, cdf[symbol], cdf[symbol + 1]
    size, width = cdf.shape
    flat = np.ascontiguousarray(cdf).reshape(-1)
    row = np.arange(0, size * width, width)
    if size * width <= _SCAN_ENTRIES:
        symbol = (cdf[:, 1:] > slot[:, None]).argmax(axis=1)
        at = row + symbol
    else:
        at = row.copy()
        left = width - 1
        while left > 1:
            half = left >> 1
            at += (flat.take(at + half) <= slot) * half
            left -= half
        symbol = at - row
    return symbol, flat.take(at), flat.take(at + 1)
