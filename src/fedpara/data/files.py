"""Data sets on disk: find and verify their files or download them; a file that cannot be read gives one line."""

import gzip
import hashlib
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pooch

from fedpara.files import write_atomically

REMEMBERED = ".fedpara_verified.json"
LARGEST = 2**30  # bytes that a compressed file may expand to; the largest real one has 47 million


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn any error of a decoder on damaged bytes (zlib, struct, syntax, memory, ...) into one line.

    Args:
        what: the kind of file that is expected, such as `a CIFAR batch`.

    Raises:
        ValueError: the file is not of that kind.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path}: not {what} ({reason})") from error


def listed(folder: Path, pattern: str) -> list[Path]:
    """The files in a folder that match a pattern, sorted, without the `._` files that macOS adds."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("._"))


def place(path: Path) -> Path:
    """The path, or the path without `.gz` if only that file exists."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    return plain if plain.is_file() and not path.is_file() else path


def unpacked(path: Path) -> bytes:
    """The content of a file, decompressed if its first two bytes are gzip's, whatever its name is."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as stream:
        return stream.read(LARGEST + 1)


@dataclass(frozen=True)
class Loose:
    """A folder of files in its standard layout, each with its own address for downloads.

    Attributes:
        folder: path of the folder, relative to the data folder.
        url: the part of the address before a file's name; empty if there is no download.
        files: MD5 of each file as it is downloaded, by name.
        contents: MD5 of a compressed file's content, by name: the user's file may be unpacked or compressed anew.
    """

    folder: str
    url: str
    files: Mapping[str, str]
    contents: Mapping[str, str] = field(default_factory=dict)

    def download(self, data_dir: Path) -> None:
        """Download and verify the missing files, with a progress bar."""
        folder = data_dir / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in _missing(self, data_dir):
            md5 = self.files[name]
            pooch.retrieve(self.url + name, f"md5:{md5}", path=folder, fname=name, progressbar=True)


@dataclass(frozen=True)
class Archive:
    """A folder of files in its standard layout, and the archive it comes from.

    Attributes:
        folder: name of the folder, also inside the archive.
        url: address of the archive (tar.gz), whose checksum is `md5`.
        files: MD5 of each file that is read, by name.
    """

    folder: str
    url: str
    md5: str
    files: Mapping[str, str]

    def download(self, data_dir: Path) -> None:
        """Download with a progress bar, verify, unpack beside the target, then move the folder into place."""
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as temporary:
            file = pooch.retrieve(self.url, f"md5:{self.md5}", path=temporary, fname="archive.tar.gz", progressbar=True)
            self._unpack(Path(file), data_dir)

    def unpack(self, data_dir: Path) -> None:
        """Unpack the archive if it lies in the data folder, with or without its `.gz`.

        Raises:
            ValueError: the file there is not the archive.
        """
        archive = place(data_dir / self.url.rpartition("/")[2])
        if archive.is_file():
            with reading(archive, f"an archive of {self.folder}"):
                self._unpack(archive, data_dir)

    def _unpack(self, archive: Path, data_dir: Path) -> None:
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".unpack-") as temporary:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            target = data_dir / self.folder
            target.mkdir(exist_ok=True)
            for path in (Path(temporary) / self.folder).iterdir():
                os.replace(path, target / path.name)


def present(source: Archive | Loose, data_dir: Path, *others: Archive | Loose) -> Path:
    """The folder with its files verified; missing files are unpacked from an archive there, or downloaded.

    Args:
        source: the files to look for and to download.
        others: other layouts; the first complete one is used if `source` is incomplete.

    Raises:
        FileNotFoundError: files are missing and the download failed; the message names the folder and the files.
        ValueError: a file's checksum is not the official one.
    """
    source = next((one for one in (source, *others) if not _missing(one, data_dir)), source)
    folder = data_dir / source.folder
    if isinstance(source, Archive) and _missing(source, data_dir):
        source.unpack(data_dir)
    if missing := _missing(source, data_dir):
        try:
            source.download(data_dir)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise FileNotFoundError(
                f"{folder}: missing {', '.join(missing)}, and {source.url} cannot be fetched "
                f"({_reason(error, source.url)}); put the files there or set paths.data_dir (or DATA_DIR)"
            ) from error
    _verify(folder, source)
    return folder


def _missing(source: Archive | Loose, data_dir: Path) -> list[str]:
    return [name for name in source.files if not place(data_dir / source.folder / name).is_file()]


def _verify(folder: Path, source: Archive | Loose) -> None:
    """Check each file's MD5 once; a file with the same size and time of change is not read again."""
    memory = folder / REMEMBERED
    try:
        known: dict[str, str] = dict(json.loads(memory.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    seen, contents = {}, source.contents if isinstance(source, Loose) else {}
    for name, md5 in source.files.items():
        path = place(folder / name)
        seen[path.name] = f"{path.stat().st_size}:{path.stat().st_mtime_ns}:{md5}"
        if known.get(path.name) != seen[path.name]:
            _require_checksum(path, md5, contents.get(name))
    if known != seen:
        _remember(memory, seen)


def _require_checksum(path: Path, md5: str, content_md5: str | None) -> None:
    """Require the official file, or one with the same content.

    Raises:
        ValueError: the file is neither.
    """
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "md5").hexdigest()
    if found != md5 and (content_md5 is None or _content_md5(path) != content_md5):
        expected = md5 if path.suffix == ".gz" or content_md5 is None else content_md5
        raise ValueError(f"{path}: MD5 is {found}, expected {expected}; delete the file to fetch it again")


def _content_md5(path: Path) -> str | None:
    """MD5 of the decompressed content; None if the file cannot be decompressed."""
    try:
        return hashlib.md5(unpacked(path)).hexdigest()
    except (OSError, EOFError, zlib.error):
        return None


def _remember(memory: Path, seen: Mapping[str, str]) -> None:
    """Write the checksums atomically; a read-only data folder is verified every time instead."""
    if not memory.parent.stat().st_mode & 0o222:
        return
    try:
        write_atomically(memory, json.dumps(seen, indent=1).encode(), durable=False)
    except OSError:
        return


def _reason(error: BaseException, url: str) -> str:
    """Why a download failed, in a few words: errors of requests have the server's answer, and pages of causes."""
    host = urlsplit(url).netloc
    if hasattr(error, "response"):
        answer = error.response
        return f"no connection to {host}" if answer is None else f"{host} answers {answer.status_code} {answer.reason}"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
