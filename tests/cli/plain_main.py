"""`python -m tests.cli.plain_main`: the command with the plain codec in place of the model."""

from __future__ import annotations

from colazip.cli.main import main
from tests.plain_codec import PlainCodec

if __name__ == "__main__":
    raise SystemExit(main(codec=PlainCodec()))
