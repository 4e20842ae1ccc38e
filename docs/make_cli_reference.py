"""Writes docs/cli.md, the reference of the command line, from the commands' own help.

Run it from the root of the repository: python docs/make_cli_reference.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from colazip.cli.main import COMMANDS, cli

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100

HEAD = """# Command line

<!-- Written by docs/make_cli_reference.py from the commands' --help; change those. -->

Data goes to standard output, messages and progress to standard error (progress only on a terminal). `-`
stands for standard input or output. Nothing is overwritten without `-f`, sources are kept, and a file appears
under its name only when it is whole. Binary data is not written to a terminal.

| exit code | means |
| --- | --- |
| 0 | done |
| 1 | failed: missing, unreadable or damaged input, no such record, no space |
| 2 | wrong usage: an option, a combination, an output that exists |
| 130, 143 | interrupted, terminated |

Every failure is one line, `colazip: error: what, where, what to do`; `COLAZIP_DEBUG=1` in the environment
shows the traceback.
"""


def reference() -> str:
    """The text of the page."""
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    root = click.Context(cli, info_name="colazip", terminal_width=WIDTH, **cli.context_settings)
    yield _section("colazip", cli.get_help(root))
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        context = click.Context(
            command, info_name=name, parent=root, terminal_width=WIDTH, max_content_width=WIDTH
        )
        yield _section(f"colazip {name}", command.get_help(context))
        for inner, part in getattr(command, "commands", {}).items():
            if not part.hidden:
                below = click.Context(
                    part, info_name=inner, parent=context, terminal_width=WIDTH, max_content_width=WIDTH
                )
                yield _section(f"colazip {name} {inner}", part.get_help(below))


def _section(title: str, help: str) -> str:
    lines = "\n".join(line.rstrip() for line in help.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(reference())
