"""`python -m colazip` is the `colazip` command."""

from colazip.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
