"""Data sets on disk: found and verified, or downloaded from their home; what cannot be read is one line."""

import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pooch

REMEMBERED = ".fedpara_verified.json"


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Within this, whatever a decoder makes of damaged bytes (zlib, struct, syntax, memory, ...) is one line.

    Args:
        what: the file should be: `a CIFAR batch`.

    Raises:
        ValueError: the file is not that.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path}: not {what} ({reason})") from error


@dataclass(frozen=True)
class Loose:
    """A folder of files in its standard layout, each with a home of its own.

    Attributes:
        folder: where they are beneath the data folder.
        url: what precedes a file's name in its address; empty where there is no home.
        files: MD5 of each file, by its name.
    """

    folder: str
    url: str
    files: Mapping[str, str]

    def download(self, data_dir: Path) -> None:
        """Fetch what is missing, verified, with a progress bar."""
        folder = data_dir / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, md5 in self.files.items():
            pooch.retrieve(self.url + name, f"md5:{md5}", path=folder, fname=name, progressbar=True)


@dataclass(frozen=True)
class Archive:
    """A folder of files in its standard layout, and the archive it comes from.

    Attributes:
        folder: name of the folder, also inside the archive.
        url: home of the archive (tar.gz), whose checksum is `md5`.
        files: MD5 of each file that is read, by its name.
    """

    folder: str
    url: str
    md5: str
    files: Mapping[str, str]

    def download(self, data_dir: Path) -> None:
        """Fetch with a progress bar, verify, unpack beside the target, then move the folder into place."""
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as temporary:
            file = pooch.retrieve(self.url, f"md5:{self.md5}", path=temporary, fname="archive.tar.gz", progressbar=True)
            with tarfile.open(file) as tar:
                tar.extractall(temporary, filter="data")
            target = data_dir / self.folder
            target.mkdir(exist_ok=True)
            for path in (Path(temporary) / self.folder).iterdir():
                os.replace(path, target / path.name)


def present(source: Archive | Loose, data_dir: Path, *others: Archive | Loose) -> Path:
    """The folder, its files verified; downloaded first where files are missing.

    Args:
        source: what is looked for, and downloaded.
        others: other layouts, each taken where it is complete and `source` is not.

    Raises:
        FileNotFoundError: files are missing and the download failed; names the folder and the files.
        ValueError: a file's checksum is not the official one.
    """
    source = next((one for one in (source, *others) if not _missing(one, data_dir)), source)
    folder = data_dir / source.folder
    if missing := _missing(source, data_dir):
        try:
            source.download(data_dir)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise FileNotFoundError(
                f"{folder}: missing {', '.join(missing)}, and {source.url} cannot be fetched "
                f"({_first_line(error)}); put the files there or set paths.data_dir (or DATA_DIR)"
            ) from error
    _verify(folder, source.files)
    return folder


def _missing(source: Archive | Loose, data_dir: Path) -> list[str]:
    return [name for name in source.files if not (data_dir / source.folder / name).is_file()]


def _verify(folder: Path, files: Mapping[str, str]) -> None:
    """Check each file's MD5 once; a file of the same size and time of change is not read again."""
    memory = folder / REMEMBERED
    try:
        known: dict[str, str] = dict(json.loads(memory.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    seen = {
        name: f"{(folder / name).stat().st_size}:{(folder / name).stat().st_mtime_ns}:{md5}"
        for name, md5 in files.items()
    }
    for name, md5 in files.items():
        if known.get(name) == seen[name]:
            continue
        with (folder / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        if found != md5:
            raise ValueError(f"{folder / name}: MD5 is {found}, expected {md5}; delete the file to fetch it again")
    if known != seen:
        _remember(memory, seen)


def _remember(memory: Path, seen: Mapping[str, str]) -> None:
    """Write atomically; a data folder that is read-only, if only by its mode, is verified every time instead."""
    if not memory.parent.stat().st_mode & 0o222:
        return
    try:
        temporary = memory.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(seen, indent=1))
        os.replace(temporary, memory)
    except OSError:
        return


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
