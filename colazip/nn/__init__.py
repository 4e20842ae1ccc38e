"""Networks only: no files, no text."""
