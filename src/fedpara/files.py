"""Writing files safely, and reserving a run folder.

A killed process leaves the old file or the new one, never half of either.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TextIO


class UnusableFile(ValueError):
    """A file that is damaged or of the wrong kind; the message is the one line to show and starts with the path."""


def write_atomically(
    path: Path, content: bytes, durable: bool = True, ready: Callable[[Path], None] = lambda temporary: None
) -> None:
    """Write a temporary file beside `path`, flush it to disk, and rename it to `path`.

    Processes that write the same path at once each have a temporary file of their own; the last one to rename it wins.

    Args:
        durable: whether the file is safely on the disk on return; if not, call `make_durable` later.
        ready: called with the temporary file once it is whole, before it counts.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    with _temporary(path) as (temporary, descriptor):
        with open(os.dup(descriptor), "wb") as stream:  # closed before the rename: some disks are full only then
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        ready(temporary)
        os.replace(temporary, path)
    if durable:
        _synchronise(path.parent)


def make_durable(*paths: Path) -> None:
    """Flush files and their names to disk, so that they survive a power loss; a killed process cannot lose them."""
    for path in [*paths, *{path.parent for path in paths}]:
        _synchronise(path)


def reserve(folder: Path, patience_s: float = 2.0) -> TextIO:
    """Keep other processes from training in a run folder until the returned file is closed or the process is gone.

    Args:
        patience_s: seconds to keep trying, because a call of `is_reserved` holds the folder for a moment.

    Raises:
        ValueError: another process has reserved it.
        OSError: it does not exist and cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stream = (folder / ".lock").open("w")
    if not _locks(stream, patience_s):
        raise ValueError(f"{folder}: another process is training in this run folder")
    return stream


def is_reserved(folder: Path) -> bool:
    """Whether a live process has reserved a run folder; one that has ended, in whatever way, does not count."""
    try:
        with (folder / ".lock").open() as stream:  # only to read, for those who may not write here
            return not _locks(stream, patience_s=0)
    except OSError:  # there is none, or it cannot be read
        return False


def _locks(stream: TextIO, patience_s: float) -> bool:
    """Lock a file, unless another process keeps it locked for so many seconds."""
    import fcntl  # not on Windows

    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
            continue
        except OSError:  # a file system without locks
            pass
        return True


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, int]]:
    """Hold an empty file of the first of a path's temporary names that no other writer has; delete it on an error.

    The lock of a killed process is gone, so the next writer takes its name, and leftovers do not pile up.
    """
    ends = (f".{number}.partial" if number else ".partial" for number in count())
    names = (path.with_name(f".{path.name}{end}") for end in ends)
    temporary, descriptor = next((name, held) for name in names if (held := _hold(name)) is not None)
    try:
        yield temporary, descriptor
    except BaseException:  # not after the rename: another writer may have the name by then
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _hold(temporary: Path) -> int | None:
    """Create a temporary file, or empty that of a killed process, and lock it until the descriptor is closed.

    Returns:
        None if another writer has it; on a file system without locks, if there is one.
    """
    import fcntl  # not on Windows

    is_new = True
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        is_new = False
        try:
            descriptor = os.open(temporary, os.O_RDWR)
        except FileNotFoundError:  # it has just been renamed
            return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = _is_at(temporary, descriptor)
    except BlockingIOError:
        is_ours = False
    except OSError:  # a file system without locks
        is_ours = is_new
    if not is_ours:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has this name; its writer may have renamed it between our opening and our lock."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
