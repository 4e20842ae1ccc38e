"""The entropy coder's format taken at its word: one stream, symbol by symbol, in Python integers."""

from __future__ import annotations


def encode_plainly(start: list[int], freq: list[int], states: int | None = None) -> bytes:
    """One stream of the intervals; states: how many to use in place of what the length calls for."""
    count = states or min(max(len(start) // 8192, 1), 16)
    lanes = [1 << 20] if count == 1 else [1 << 32] * count
    words: list[int] = []
    for index in reversed(range(len(start))):
        x = lanes[index % count]
        if x >> 44 >= freq[index]:
            words.append(x & 0xFFFFFFFF)
            x >>= 32
        lanes[index % count] = (x // freq[index] << 20) + start[index] + x % freq[index]
    tail = b"".join(word.to_bytes(4, "little") for word in reversed(words))
    if count > 1:
        return bytes([count]) + b"".join(x.to_bytes(8, "little") for x in lanes) + tail
    if lanes == [1 << 20] and not tail:
        return b""
    body = lanes[0].to_bytes((lanes[0].bit_length() + 7) // 8, "little") + tail
    return (b"\1" if 1 <= body[0] <= 16 else b"") + body
