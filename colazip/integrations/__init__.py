"""Adapters to other libraries: a module each, which needs its extra, as in `colazip[langchain]`."""
