"""A codec that has its blocks coded by processes of their own: a share of the cores each, or of a GPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar

from colazip.codec import Codec
from colazip.errors import ColazipError, UsageError
from colazip.layers import Block
from colazip.presets import SMALL

_T = TypeVar("_T")
MOST_WORKERS = 256
_GPU_THREADS = 2  # of a process that a GPU works for

_own: Codec  # of a worker process


class PooledCodec(Codec):
    """A codec with `workers` processes for `encode_blocks`, `decode_blocks` and `read_gist`.

    The results are those of `codec`. The processes start with the first call that has several blocks for
    them, which takes a second or two, need up to 1.5 GB of memory each, and end with `close` or the `with`
    block. They import the main program anew, so a script keeps what it does under `if __name__ ==
    "__main__":`. Raises UsageError for workers below 1 or above MOST_WORKERS.
    """

    def __init__(self, codec: Codec, workers: int) -> None:
        if not 1 <= workers <= MOST_WORKERS:
            raise UsageError(f"{workers} workers: must be 1 to {MOST_WORKERS}")
        super().__init__(codec.model, **codec._options)
        self._workers = workers
        self._processes: ProcessPoolExecutor | None = None

    def __enter__(self) -> PooledCodec:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; a later call starts them anew."""
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)
            self._processes = None

    @property
    def pack_batch(self) -> int:
        return super().pack_batch * self._workers

    @property
    def read_batch(self) -> int:
        return super().read_batch * self._workers

    def encode_blocks(
        self,
        blocks: Sequence[Sequence[bytes]],
        layers: Sequence[str] | None = None,
        preset: str = SMALL,
    ) -> list[Block]:
        if self._alone(blocks):
            return super().encode_blocks(blocks, layers, preset)
        return self._spread(_encode, blocks, layers, preset)

    def decode_blocks(self, blocks: Sequence[Block]) -> list[list[bytes]]:
        return super().decode_blocks(blocks) if self._alone(blocks) else self._spread(_decode, blocks)

    def read_gist(self, blocks: Sequence[Block]) -> list[list[str]]:
        return super().read_gist(blocks) if self._alone(blocks) else self._spread(_read, blocks)

    def _alone(self, blocks: Sequence[Any]) -> bool:
        """Whether these blocks are not worth starting the processes for."""
        return len(blocks) < 2 and self._processes is None

    def _spread(self, call: Callable[..., list[_T]], blocks: Sequence[Any], *arguments: Any) -> list[_T]:
        """An equal share of the blocks for each worker."""
        if self._processes is None:
            self._processes = ProcessPoolExecutor(
                self._workers,
                mp_context=get_context("spawn"),  # torch and Arrow have threads, which a fork would lose
                initializer=_begin,
                initargs=(Codec(self.model, **self._options), self._threads()),
            )
        each = max(1, -(-len(blocks) // self._workers))
        shares = [list(blocks[lo : lo + each]) for lo in range(0, len(blocks), each)]
        waiting: list[Future[list[_T]]] = []
        try:
            waiting += [self._processes.submit(call, share, *arguments) for share in shares]
            return [row for future in waiting for row in future.result()]
        except BrokenProcessPool as error:
            self.close()
            raise ColazipError(
                "a worker process ended before its work was done, for want of memory perhaps: use fewer"
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def _threads(self) -> int:
        """Of each process."""
        if self.device != "cpu":
            return _GPU_THREADS
        told = os.environ.get("OMP_NUM_THREADS", "")
        cores = int(told) if told.isdecimal() and int(told) else os.cpu_count() or 1
        return max(1, cores // self._workers)


def _end_with(parent: BaseProcess) -> None:
    """End this process when the calling one has: killed, it can't tell its workers, and these hold both ends
    of the pipes that they wait for."""
    parent.join()
    os._exit(1)


def _begin(codec: Codec, threads: int) -> None:
    global _own
    # Interrupted with the calling process, it just ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    _own = codec


def _encode(blocks: list[list[bytes]], layers: Sequence[str] | None, preset: str) -> list[Block]:
    return _own.encode_blocks(blocks, layers, preset)


def _decode(blocks: list[Block]) -> list[list[bytes]]:
    return _own.decode_blocks(blocks)


def _read(blocks: list[Block]) -> list[list[str]]:
    return _own.read_gist(blocks)
