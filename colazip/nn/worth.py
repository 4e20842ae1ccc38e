"""When compiled code is loaded: once there is work enough. No torch, no Numba.

Loading it takes about half a second, or a few where it has to be compiled first. It changes no bit of any
result.
"""

from __future__ import annotations

_WORTH_LOADING = 1 << 14  # tokens, 60 kB of text: then the time of loading is won back
_expected = 0  # tokens


def expect_work(tokens: int) -> None:
    """Tells that so many tokens are about to pass the networks."""
    global _expected
    _expected += tokens


def is_worth_loading() -> bool:
    return _expected >= _WORTH_LOADING
