"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from colazip.cli.console import Console
from colazip.errors import UsageError
from colazip.sampling import MAX_GUIDANCE, MAX_STEPS, SOLVERS, Sampling

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
where_option = click.option(
    "--where",
    metavar="FILTER",
    help="Only records whose metadata pass, as in \"year >= 2020 and lang = 'en'\"; also in, between, like, "
    "is null, not, or, parentheses.",
)
preset_option = click.option(
    "--preset",
    type=click.Choice(["fast", "balanced", "small"]),
    default="small",
    show_default=True,
    help="Speed against size. small: coded by the model. fast, balanced: the exact text kept by zstd with "
    "the model's dictionary, without a gist; balanced takes more effort.",
)
detail_option = click.option(
    "--detail",
    type=click.IntRange(min=0),
    metavar="N",
    help="How much the gist says: 0 names the most tokens, higher numbers fewer, the model says how many "
    "there are. The text that comes back exactly is the same. [default: 0]",
)
brief_option = click.option(
    "--brief",
    type=click.FloatRange(1 / 64, 1),
    metavar="SHARE",
    help="Keep only the words that carry the meaning: about this share of those of a long text, a text of up "
    "to 100 words whole (up to 50 with 0.0625, 25 with 0.03125). English passages get some 8 times smaller "
    "with 0.5, 16 times with 0.0625. The gist is then a list of words, and there is no exact layer.",
)
price_option = click.option(
    "--price",
    type=click.FloatRange(1, 100),
    metavar="BITS",
    help="Leave words out of the gist that cost more bits than this for each of their tokens that would "
    "read right; there is no exact layer then. At 9.5 English text loses about an eighth of its words, and "
    "the gist as much of its size. Packing takes several times as long.",
)
code_bytes_option = click.option(
    "--code-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Bytes of a search code: more find better and take more room. The model says which sizes there are; "
    "the default model makes codes of 24 and of 40. [default: the model's own]",
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


def sampling_options(function: F) -> F:
    """Adds how the diffusion prior draws; the command gets `sampling`."""

    @click.option(
        "--steps",
        type=click.IntRange(1, MAX_STEPS),
        default=Sampling.steps,
        show_default=True,
        help="Steps of the prior, or its rounds a block when it goes on: more is better.",
    )
    @click.option(
        "--solver",
        type=click.Choice(SOLVERS),
        default=Sampling.solver,
        show_default=True,
        help="midpoint is of second order and runs the prior twice a step, euler once.",
    )
    @click.option(
        "--guidance",
        type=click.FloatRange(0, MAX_GUIDANCE),
        default=Sampling.guidance,
        show_default=True,
        help="Above 1 the prior heeds what stands before more.",
    )
    @click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=Sampling.seed,
        show_default=True,
        help="Another seed gives another result.",
    )
    @wraps(function)
    def command(*args: Any, steps: int, solver: str, guidance: float, seed: int, **kwargs: Any) -> Any:
        return function(*args, sampling=Sampling(steps, solver, guidance, seed), **kwargs)

    return command  # type: ignore[return-value]


def check_sampling(*unused: str, advice: str) -> None:
    """Raises UsageError if one of these options of the running command was given."""
    context = click.get_current_context()
    for name in unused:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name} is the prior's; {advice}")


def check_detail(detail: int | None, layers: Sequence[str]) -> int:
    """The detail to write gists with. Raises UsageError if one was asked for and no gist is written."""
    from colazip.layers import GIST

    if detail is not None and GIST not in layers:
        raise UsageError(f"--detail {detail}: says what a gist names, and none is written here")
    return detail or 0


def check_code_bytes(code_bytes: int | None, layers: Sequence[str]) -> None:
    """Raises UsageError if a size was asked for and no search codes are written."""
    from colazip.layers import SEARCH

    if code_bytes is not None and SEARCH not in layers:
        raise UsageError(f"--code-bytes {code_bytes}: is about the layer {SEARCH}, and none is written here")


def gist_layers(
    layers: Sequence[str] | None, brief: float | None, price: float | None
) -> Sequence[str] | None:
    """The layers to pack: with a brief or a price all that can be, where none are named. Raises UsageError
    where no gist is to be written, or for both."""
    from colazip.layers import GIST, SEARCH

    if brief is None and price is None:
        return layers
    if brief is not None and price is not None:
        raise UsageError("--brief chooses words by what they mean, --price by what they cost: give one")
    if layers is not None and GIST not in layers:
        given = f"--price {price:g}" if brief is None else f"--brief {brief:g}"
        raise UsageError(f"{given}: says what a gist holds, and none is written here")
    return (SEARCH, GIST) if layers is None else layers


def layer_list(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """Callback: `search,gist` -> ("search", "gist"). The library checks the names."""
    if value is None:
        return None
    return tuple(name.strip() for name in value.split(",") if name.strip())


def training_options(function: F) -> F:
    """Adds what every training run is told: --output, --text-column, --skip-source, --device, --resume."""
    for option in (
        click.option("--resume", is_flag=True, help="Go on with the run in DIR."),
        click.option(
            "--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, or auto."
        ),
        click.option(
            "--skip-source",
            multiple=True,
            metavar="PREFIX",
            help="Leave out rows whose 'source' column starts so.",
        ),
        click.option(
            "--text-column",
            default="text",
            show_default=True,
            metavar="NAME",
            help="Column that holds the text.",
        ),
        click.option(
            "-o",
            "--output",
            required=True,
            metavar="DIR",
            help="Folder of the run; the model lands in DIR/model.",
        ),
    ):
        function = option(function)
    return function
