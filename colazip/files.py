"""Files and folders that appear whole or not at all; names from an archive that stay inside their folder."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from colazip.errors import FormatError, InputError, UsageError
from colazip.remote import is_url

PARTIAL_PREFIX = ".colazip-"
PARTIAL_SUFFIX = ".partial"


@contextmanager
def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write that gets its name at the end, if nothing was raised. Devices are written directly.

    Raises UsageError if `path` exists and `overwrite` is false.
    """
    check_here(path)
    target = os.path.realpath(os.fspath(path))  # a link keeps pointing to the file
    mode = _existing_mode(target)
    if mode is not None and not stat.S_ISREG(mode):
        with open(target, "wb") as device:
            yield device
        return
    check_free(target, overwrite)
    _check_parent(Path(target))
    descriptor, partial = tempfile.mkstemp(PARTIAL_SUFFIX, PARTIAL_PREFIX, os.path.dirname(target))
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(descriptor, _usual_mode() if mode is None else stat.S_IMODE(mode))
            os.fsync(descriptor)
        check_free(target, overwrite)  # it may have appeared while we wrote
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


@contextmanager
def new_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill that appears as `path`, or moves into the folder `path`, if nothing was raised.

    Raises UsageError if `path` is a folder with something in it and `overwrite` is false, or is a file.
    """
    check_here(path)
    target = Path(os.path.realpath(path))
    exists = _existing_mode(str(target)) is not None
    if exists and not target.is_dir():
        raise UsageError(f"{path}: exists and is not a folder; choose another with -o")
    if exists and not overwrite and any(target.iterdir()):
        raise UsageError(f"{path}: exists and is not empty; choose another with -o, or write into it with -f")
    if not exists:
        _check_parent(target)
    beside = target if exists else target.parent
    partial = Path(tempfile.mkdtemp(PARTIAL_SUFFIX, PARTIAL_PREFIX, beside))
    try:
        yield partial
        if exists:
            _move_into(partial, target)
        else:
            partial.chmod(_usual_mode() | 0o111 & ~_umask())
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replaced_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill that takes the place of the folder `path`, if there is one, if nothing was raised.

    Readers that have files of the old one open keep them. Raises UsageError if `path` is a file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise UsageError(f"{path}: exists and is not a folder; move it away")
    _check_parent(target)
    partial, old = (
        Path(tempfile.mkdtemp(PARTIAL_SUFFIX, PARTIAL_PREFIX, target.parent)) for _ in ("new", "old")
    )
    try:
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        partial.chmod(_usual_mode() | 0o111 & ~_umask())
        if target.exists():
            os.rename(target, old)  # an empty folder may be renamed over
        os.rename(partial, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def inside(folder: Path, name: str) -> Path:
    """The path of `name`, a relative path with `/`, in `folder`; its folders are made.

    `folder` must hold nothing but what came this way. Raises FormatError for a name that is absolute, climbs
    out, or is none that every system reads the same way.
    """
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise FormatError(
            f"record id {name[:80]!r} is no relative path; unpack to a table with --format jsonl"
        )
    path = folder.joinpath(*parts)
    # On systems with drives and other separators a part can be more than one step.
    if os.path.relpath(path, folder).split(os.sep) != parts:
        raise FormatError(
            f"record id {name[:80]!r} is no file name here; unpack to a table with --format jsonl"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FormatError(f"record id {name[:80]!r} needs a folder where another record is a file") from None
    return path


def create(path: Path, data: bytes) -> None:
    """Write a file that does not exist yet. Raises FormatError if it does: two records of one name."""
    try:
        with open(path, "xb") as file:
            file.write(data)
    except (FileExistsError, IsADirectoryError):
        raise FormatError(
            f"two records would both be file {path.name!r}; unpack to a table instead"
        ) from None


def check_free(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raises UsageError if `path` is there and must not be overwritten, or is a URL."""
    check_here(path)
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{os.fspath(path)}: exists already; choose another name, or overwrite it with -f")


def check_here(path: str | os.PathLike[str]) -> None:
    """Raises UsageError for a URL: what appears whole or not at all appears here."""
    if is_url(os.fspath(path)):
        raise UsageError(f"{os.fspath(path)}: only files here are written; write one, and copy it there")


def check_apart(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Raises UsageError if `output` is the file that is being read."""
    if os.path.realpath(source) == os.path.realpath(output):
        raise UsageError(f"{os.fspath(output)}: is both source and output; choose another output")


def _move_into(partial: Path, target: Path) -> None:
    """Move every file under `partial` to its place under `target`, once all places are known to be good."""
    moves = [
        (Path(folder, name), target / Path(folder, name).relative_to(partial))
        for folder, _, names in os.walk(partial)
        for name in sorted(names)
    ]
    for _, place in moves:
        for step in reversed(place.relative_to(target).parents):
            if (target / step).is_symlink() and step != Path():
                raise InputError(f"{target / step}: is a link, and may lead out of {target}; remove it")
            if (target / step).exists() and not (target / step).is_dir():
                raise InputError(f"{target / step}: is a file where a folder must be; remove it")
        if place.is_dir() and not place.is_symlink():
            raise InputError(f"{place}: is a folder where a file must be; remove it")
    for file, place in moves:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)


def _sync(path: Path) -> None:
    """What was written to a file or folder is on the disk, where the file system can say so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_parent(target: Path) -> None:
    """The system's own error would name a temporary file that nobody asked for."""
    if not target.parent.is_dir():
        raise InputError(f"{target}: can't be written: there is no folder {target.parent}; make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{target}: can't be written: folder {target.parent} is closed; check the permissions"
        )


def _existing_mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _usual_mode() -> int:
    return 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
