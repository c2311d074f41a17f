"""A chained log: each line holds the hash of the line before it, so that no line changes, comes or goes unseen.

The chain is the linking of S. Haber and W. S. Stornetta, "How to Time-Stamp a Digital Document" (Journal of Cryptology,
1991): whoever knows the last hash can check all lines. The hash is SHA-256 (FIPS 180-4). A line is canonical JSON, so
that each of its bytes counts.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedpara.files import UnusableFile

NOTHING = "0" * 64  # the hash before the first line
Line = dict[str, Any]


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest(content: Any) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex, in the memory of a buffer."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def append(path: Path, bodies: Iterable[Mapping[str, Any]], previous: str) -> str:
    """Write lines in one piece, and force them onto the disk.

    Args:
        previous: the hash of the log's last line; `NOTHING` if it has none.

    Returns:
        The hash of the new last line.
    """
    text = b""
    for body in bodies:
        line = {**body, "previous": previous}
        previous = digest(canonical(line))
        text += canonical(line | {"hash": previous}) + b"\n"
    with path.open("ab") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    return previous


def read(path: Path, unfinished: bool = False) -> list[Line]:
    """The lines of a log, each checked against itself and the one before it.

    Args:
        unfinished: whether a last line that was cut short is left out, as a lost process leaves it.

    Raises:
        UnusableFile: names the first line that does not fit.
    """
    *whole, rest = path.read_bytes().split(b"\n")
    if rest and not unfinished:
        raise UnusableFile(f"{path}: ends within line {len(whole) + 1}")
    lines: list[Line] = []
    for number, text in enumerate(whole, 1):
        line = _line(text)
        if line is None:
            raise UnusableFile(f"{path}: line {number} was changed, its hash is not that of its content")
        if line["previous"] != (lines[-1]["hash"] if lines else NOTHING):
            before = f"line {number - 1}" if lines else "the start"
            raise UnusableFile(f"{path}: line {number} does not follow on {before}; a line was removed, added or moved")
        lines.append(line)
    return lines


def _line(text: bytes) -> Line | None:
    """The line, if it has the hash of its content and is the canonical text of it."""
    try:
        line = json.loads(text)
        own = digest(canonical({key: value for key, value in line.items() if key != "hash"}))
        return line if text == canonical(line) and line["hash"] == own and "previous" in line else None
    except (ValueError, AttributeError, KeyError, RecursionError):
        return None
