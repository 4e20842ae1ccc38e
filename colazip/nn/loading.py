"""When and how compiled code is loaded. No torch, no Numba.

It changes no bit of any result. Loading it takes about half a second, or ten where it has to be
compiled first, so a CPU's is loaded once there is work enough.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Timer
from types import ModuleType
from typing import Any

from colazip.memory import BlockMemory

# Tokens: half a megabyte of text to read, or a quarter to pack, which tells of them twice. Several times what
# wins the time of loading back, so that few who try things out wait for a compiler.
_WORTH_LOADING = 1 << 17
_LONG = 1.5  # seconds, several times what loading takes
_expected = 0  # tokens
_operation_by_operation = False


def expect_work(tokens: int) -> None:
    """Tells that so many tokens are about to pass the networks."""
    global _expected
    _expected += tokens


def is_worth_loading() -> bool:
    """Whether a CPU should have compiled code by now."""
    return _expected >= _WORTH_LOADING and not _operation_by_operation


def is_compared() -> bool:
    """Whether no device should have any, within `operation_by_operation`."""
    return _operation_by_operation


@contextmanager
def operation_by_operation() -> Iterator[None]:
    """Without compiled code, in all threads: to compare with."""
    global _operation_by_operation
    before, _operation_by_operation = _operation_by_operation, True
    try:
        yield
    finally:
        _operation_by_operation = before


def load_kernels(module: str, works: Callable[[Any], bool], without: str) -> ModuleType | None:
    """A module of compiled code; None where it doesn't run or gives other bits, which is said. works: tries
    it out."""
    try:
        with _announced():
            kernels = importlib.import_module(module)
            reason = "" if works(kernels) else "they differ on this device"
    except Exception as error:
        # Whatever it is: Triton without a C compiler, Numba without a place to keep what it compiled.
        reason = type(error).__name__
    if reason:
        print(f"{without} ({reason})", file=sys.stderr)
    return None if reason else kernels


@contextmanager
def _announced() -> Iterator[None]:
    """Says on a terminal, if it takes long, that something is compiled."""
    timer = Timer(_LONG, print, ["colazip: compiling for this machine, once"], {"file": sys.stderr})
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def compiled_loops() -> Any:
    """`colazip.nn.loops`, what a CPU does around the networks; None without."""
    return _loops() if is_worth_loading() else None


def block_memory(blocks: int) -> BlockMemory:
    """Empty memories of so many blocks, compiled or not."""
    loops = compiled_loops()
    memory: BlockMemory = (BlockMemory if loops is None else loops.LoopMemory)(blocks)
    return memory


@lru_cache(maxsize=1)
def _loops() -> Any:
    return load_kernels("colazip.nn.loops", lambda loops: True, "streams and memories without compiled loops")
