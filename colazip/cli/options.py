"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from colazip.cli.console import Console

F = TypeVar("F", bound=Callable[..., Any])

force_option = click.option("-f", "--force", is_flag=True, help="Overwrite what exists.")
layer_option = click.option(
    "--from",
    "layer",
    type=click.Choice(["exact", "gist"]),
    default="exact",
    show_default=True,
    help="Read the exact text, or the approximate one.",
)
preset_option = click.option(
    "--preset",
    type=click.Choice(["fast", "balanced", "small"]),
    default="small",
    show_default=True,
    help="Speed against size. small: coded by the model. fast, balanced: the exact text kept by zstd with "
    "the model's dictionary, without a gist; balanced takes more effort.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON.")


def console_options(function: F) -> F:
    """Adds -q and -v; the command gets `console`."""

    @click.option("-q", "--quiet", is_flag=True, help="No messages but errors.")
    @click.option("-v", "--verbose", is_flag=True, help="More messages.")
    @wraps(function)
    def command(*args: Any, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        return function(*args, console=Console(quiet, verbose), **kwargs)

    return command  # type: ignore[return-value]


def layer_list(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """Callback: `search,gist` -> ("search", "gist"). The library checks the names."""
    if value is None:
        return None
    return tuple(name.strip() for name in value.split(",") if name.strip())
