"""Exceptions that colazip raises on purpose. Each carries the exit code of the command line."""

from __future__ import annotations


class ColazipError(Exception):
    """Base of every error a caller may want to catch. The message is one line: what, where, what to do."""

    exit_code = 1


class UsageError(ColazipError):
    """The call itself is wrong: an option, a name, a combination."""

    exit_code = 2


class InputError(ColazipError):
    """The input can't be read: missing, unreadable, empty, or lacking the named column."""


class FormatError(ColazipError):
    """Bytes that claim to be colazip's are damaged, truncated, or not colazip's at all."""


class VersionError(FormatError):
    """Bytes of a newer format than this release reads."""


class ModelMismatchError(ColazipError):
    """The archive or blob was written with a model of another hash."""


class MissingLayerError(ColazipError):
    """The layer that the call needs was not packed, or was stripped."""


class SearchIndexError(ColazipError):
    """The search index beside an archive is missing, stale or damaged; it can be built again."""


class RecordNotFoundError(ColazipError):
    """No record of that id."""


class LockedError(ColazipError):
    """Another process is writing to the same archive."""


class ModelError(ColazipError):
    """A model folder is missing, damaged, or does not fit this release."""
