"""`colazip model`."""

from __future__ import annotations

from collections.abc import Mapping

import click

from colazip.cli.console import Console, printable, write_json
from colazip.cli.options import console_options, json_option


@click.command()
@click.argument("path", required=False)
@json_option
@console_options
def model(path: str | None, as_json: bool, console: Console) -> None:
    """Describe the model in the folder PATH, or the one in the package: name, id, configuration, card."""
    from colazip.pretrained import describe

    facts = describe(path)
    if as_json:
        write_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, Mapping):
            click.echo(f"{name}:")
            for key, item in value.items():
                click.echo(f"  {printable(str(key)):<24}{printable(str(item))}")
        elif isinstance(value, str) and "\n" in value:
            click.echo(f"{name}:")
            for line in value.splitlines():
                click.echo(f"  {printable(line)}".rstrip())
        else:
            click.echo(f"{printable(name):<26}{printable(str(value))}")
