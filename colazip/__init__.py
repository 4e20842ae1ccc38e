"""colazip: latent compression and semantic storage of text."""

from colazip.version import __version__

__all__ = ["__version__"]
