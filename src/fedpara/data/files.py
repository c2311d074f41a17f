"""Data sets on disk: found and verified, or downloaded from their home."""

import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch

REMEMBERED = ".fedpara_verified.json"


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


def present(archive: Archive, data_dir: Path) -> Path:
    """The folder, its files verified; downloaded first where files are missing.

    Raises:
        FileNotFoundError: files are missing and the download failed; names the folder and the files.
        ValueError: a file's checksum is not the official one.
    """
    folder = data_dir / archive.folder
    missing = [name for name in archive.files if not (folder / name).is_file()]
    if missing:
        try:
            _download(archive, data_dir)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise FileNotFoundError(
                f"{folder}: missing {', '.join(missing)}, and {archive.url} cannot be fetched "
                f"({_first_line(error)}); put the files there or set paths.data_dir (or DATA_DIR)"
            ) from error
    _verify(folder, archive.files)
    return folder


def _download(archive: Archive, data_dir: Path) -> None:
    """Fetch with a progress bar, verify, unpack beside the target, then move the folder into place."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as temporary:
        file = pooch.retrieve(
            archive.url, f"md5:{archive.md5}", path=temporary, fname="archive.tar.gz", progressbar=True
        )
        with tarfile.open(file) as tar:
            tar.extractall(temporary, filter="data")
        target = data_dir / archive.folder
        target.mkdir(exist_ok=True)
        for path in (Path(temporary) / archive.folder).iterdir():
            os.replace(path, target / path.name)


def _verify(folder: Path, files: Mapping[str, str]) -> None:
    """Check each file's MD5 once; a file of the same size and time of change is not read again."""
    memory = folder / REMEMBERED
    try:
        known: dict[str, str] = json.loads(memory.read_text())
    except (OSError, ValueError):
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
    """Write atomically; a data folder that is read-only is verified every time instead."""
    try:
        temporary = memory.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(seen, indent=1))
        os.replace(temporary, memory)
    except OSError:
        return


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
