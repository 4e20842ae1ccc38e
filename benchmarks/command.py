"""What the benchmark commands share: a failure is one line on stderr and an exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from colazip.errors import ColazipError


def note(message: str) -> None:
    """Progress, on stderr."""
    click.echo(message, err=True)


def run_command(command: click.Command, name: str) -> NoReturn:
    """Run a command as `python -m NAME` and exit."""
    sys.exit(_run(command, name))


def _run(command: click.Command, name: str) -> int:
    try:
        command.main(prog_name=f"python -m {name}", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ColazipError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except (OSError, ValueError, ImportError) as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("error: interrupted", err=True)
        return 1
    return 0
