"""Files: written so that a killed process leaves the old or the new one, never half of either; refused in one line."""

import os
import time
from pathlib import Path
from typing import TextIO


class UnusableFile(ValueError):
    """A file that is damaged, or not what it should be; the text is the one line to show, and begins with its path."""


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Write beside `path`, flush to disk, rename over it.

    Args:
        durable: whether it is on the disk on return; otherwise that takes a `make_durable`.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
        if durable:
            _synchronise(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def make_durable(*paths: Path) -> None:
    """Have files and their names on the disk, against a loss of power; against a killed process nothing is needed."""
    for path in [*paths, *{path.parent for path in paths}]:
        _synchronise(path)


def reserve(folder: Path, patience_s: float = 2.0) -> TextIO:
    """Keep other processes from training in a run folder until the returned file is closed or the process is gone.

    Args:
        patience_s: seconds to try for, since who asks `is_reserved` has the folder for a moment.

    Raises:
        ValueError: another process has it.
        OSError: it does not exist and cannot be made.
    """
    import fcntl  # not on Windows

    folder.mkdir(parents=True, exist_ok=True)
    stream, end = (folder / ".lock").open("w"), time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise ValueError(f"{folder}: another process is training in this run folder") from error
            time.sleep(0.05)
            continue
        except OSError:  # a file system without locks
            pass
        return stream


def is_reserved(folder: Path) -> bool:
    """Whether a process is at work in a run folder; one that is gone, however it went, is not."""
    if not (folder / ".lock").is_file():
        return False
    try:
        reserve(folder, patience_s=0).close()
    except ValueError:
        return True
    except OSError:  # a folder that may only be read
        return False
    return False


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
