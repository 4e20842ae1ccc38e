"""Archives: many texts in one file, small, searchable by meaning, and readable one by one."""

from colazip.archive.reader import Archive, open_archive
from colazip.archive.record import Hit, PackSummary, Record

__all__ = ["Archive", "Hit", "PackSummary", "Record", "open_archive"]
