"""Send texts through a pipe: the gist first, readable and searchable at once, what makes them exact later.

python examples/pipe_transport.py            (starts the receiver as a second process and feeds it)

A block of texts has layers, and layers travel apart: the receiver reads the gist as soon as it is there, and
joins the exact layer to it when that arrives. Nothing is sent twice.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgpack

import colazip
from colazip.demo import handbook
from colazip.layers import EXACT, Block

TEXTS_A_BLOCK = 40
FRAME_LIMIT = 1 << 24  # no frame of an honest sender is larger


def send(pipe: BinaryIO, message: dict[str, Any]) -> int:
    """One frame: four bytes of length, then MessagePack. Returns its size."""
    body = msgpack.packb(message)
    pipe.write(len(body).to_bytes(4, "little") + body)
    pipe.flush()
    return 4 + len(body)


def frames(pipe: BinaryIO) -> Iterator[dict[str, Any]]:
    """Frames up to the end of the pipe. Raises ValueError on a frame that is too long or cut short."""
    while head := pipe.read(4):
        length = int.from_bytes(head, "little")
        body = pipe.read(length) if len(head) == 4 and length <= FRAME_LIMIT else b""
        if not body or len(body) != length:
            raise ValueError("the stream is damaged or ends inside a frame")
        yield msgpack.unpackb(body)


def sender() -> None:
    texts = [passage.text.encode() for passage in handbook()]
    codec = colazip.Codec.from_pretrained()
    groups = [texts[at : at + TEXTS_A_BLOCK] for at in range(0, len(texts), TEXTS_A_BLOCK)]
    blocks = codec.encode_blocks(groups)

    receiver = subprocess.Popen([sys.executable, __file__, "--receive"], stdin=subprocess.PIPE)
    assert receiver.stdin is not None
    with receiver.stdin as pipe:
        size = send(pipe, {"model": codec.id})
        for block in blocks:
            first = {name: data for name, data in block.layers.items() if name != EXACT}
            size += send(pipe, {"count": block.count, "layers": first})
        total = sum(map(len, texts))
        print(f"sender: {total} bytes of text; readable after {size} bytes ({total / size:.1f}x)", flush=True)
        for number, block in enumerate(blocks):
            later = block.layers.get(EXACT, b"")
            size += send(pipe, {"exact": later, "of": number, "sha256": digest(groups[number])})
        print(f"sender: exact after {size} bytes ({total / size:.1f}x)", flush=True)
    if receiver.wait():
        sys.exit("sender: the receiver failed")


def receive() -> None:
    codec = colazip.Codec.from_pretrained()
    messages = frames(sys.stdin.buffer)
    if next(messages).get("model") != codec.id:
        sys.exit("receiver: the sender uses another model")
    blocks: list[Block] = []
    texts = 0
    for message in messages:
        if "exact" not in message:
            blocks.append(Block(message["count"], message["layers"]))
            readings = codec.read_gist([blocks[-1]])[0]
            vectors = len(codec.search_codes(blocks[-1])[0])
            print(f"receiver: block {len(blocks) - 1}: {vectors} vectors; first reading: {readings[0][:60]}")
            continue
        waiting = blocks[message["of"]]
        whole = Block(waiting.count, {**waiting.layers, EXACT: message["exact"]})
        parts = codec.decode_blocks([whole])[0]
        if digest(parts) != message["sha256"]:
            sys.exit(f"receiver: block {message['of']} differs from what was sent")
        texts += len(parts)
    print(f"receiver: {texts} texts, all equal to what was sent")


def digest(texts: list[bytes]) -> bytes:
    return hashlib.sha256(b"".join(len(text).to_bytes(4, "little") + text for text in texts)).digest()


if __name__ == "__main__":
    if sys.argv[1:] == ["--receive"]:
        receive()
    else:
        sender()
