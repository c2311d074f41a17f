"""Shakespeare (McMahan et al. 2017; LEAF, Caldas et al. 2018): the next of 80 characters; an owner is a role.

The data come from LEAF's json files, or from the plays themselves: a folder of .txt files, or a tar archive of them,
with the lines `NAME<TAB>text` (and `<TAB>text` for the lines that follow), as in the public-domain Moby edition.
"""

import logging
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpara.data.examples import DataSet, Examples
from fedpara.data.files import listed, reading
from fedpara.data.sets.leaf import leaf

log = logging.getLogger(__name__)
LENGTH = 80
CHARACTERS = (
    "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"  # LEAF's 80, in its order
)
INDEX = np.full(256, CHARACTERS.index(" "), np.uint8)  # every other character counts as a space
INDEX[np.frombuffer(CHARACTERS.encode("ascii"), np.uint8)] = np.arange(len(CHARACTERS))
TEST_SHARE = 0.1
FIRST_ACT = re.compile(r"^ACT I[IV]*\b", re.MULTILINE)  # a file may hold the later acts alone
HEADING = re.compile(r"(ACT|SCENE)(?![\w-])")  # not ACTOR or SCENE-SHIFTER, who speak


def shakespeare(data_dir: str) -> DataSet:
    """Windows of 80 characters, each with the character that follows; 80 classes.

    Args:
        data_dir: the folder that contains `shakespeare`: LEAF's `train` and `test`, or plays as *.txt or *.tar.*.

    The first 90 % of a role's characters are for training, the rest for testing; no window overlaps both.

    Raises:
        FileNotFoundError: the files are missing.
        ValueError: a file is damaged or of the wrong kind.
    """
    folder = Path(data_dir) / "shakespeare"
    roles = {} if (folder / "train").is_dir() else speeches(folder)
    if not roles:
        command = "data/shakespeare/preprocess.sh -s niid --sf 1.0 -k 0 -t sample -tf 0.8"
        train, test = leaf(folder, _rows, _next, command)
        return DataSet("shakespeare", train, test, len(CHARACTERS), Tensor.long)
    texts = [_indices("".join(roles[role])) for role in sorted(roles)]
    ends = [round((1 - TEST_SHARE) * len(text)) for text in texts]
    train = _windows([text[:end] for text, end in zip(texts, ends, strict=True)])
    test = _windows([text[end:] for text, end in zip(texts, ends, strict=True)])
    return DataSet("shakespeare", train, test, len(CHARACTERS), Tensor.long)


def speeches(folder: Path) -> dict[str, list[str]]:
    """The lines of each role, named `play/NAME`; empty if the folder holds no plays.

    A file without a speech is left out with a warning.

    Raises:
        ValueError: two files hold plays of the same name, or no file holds a speech.
    """
    roles: dict[str, list[str]] = defaultdict(list)
    found_in: dict[str, str] = {}
    for play, source, text in _plays(folder):
        if earlier := found_in.get(play):
            raise ValueError(f"{source}: {play} is in {earlier} too; keep one of them")
        found_in[play] = source
        _, *rest = re.split(FIRST_ACT, text, maxsplit=1)  # title and dramatis personae come before
        role, before = None, len(roles)
        for line in re.sub(r"\[[^]]*\]", "", "".join(rest)).splitlines():  # stage directions are in brackets
            name, tab, said = line.partition("\t")
            if not tab:
                role = None
            elif name:
                role = None if HEADING.match(name) else f"{play}/{name.strip()}"
            if role and said.strip():
                roles[role].append(said.strip() + "\n")
        if len(roles) == before:
            log.warning("%s: left out; it has no lines NAME<TAB>speech after a line `ACT I`", source)
    if found_in and not roles:
        first = next(iter(found_in.values()))
        raise ValueError(f"{first}: holds no speech; after a line `ACT I` a play has lines NAME<TAB>speech")
    return roles


def _plays(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Each play's name, where it was found, and its text."""
    for path in listed(folder, "**/*.txt"):
        yield path.stem, str(path), _decoded(path.read_bytes())
    for path in listed(folder, "*.tar*"):
        with reading(path, "a tar archive of plays"), tarfile.open(path) as tar:
            for member in sorted(tar.getmembers(), key=lambda member: member.name):
                name = Path(member.name)
                if (
                    member.isfile() and name.suffix == ".txt" and not name.name.startswith("._")
                ):  # read in place: nothing is unpacked
                    stream = tar.extractfile(member)
                    assert stream is not None
                    yield name.stem, f"{path}/{name}", _decoded(stream.read())


def _decoded(text: bytes) -> str:
    """Decode UTF-8, else Latin-1, which accepts any bytes; line ends become those of Unix."""
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError:
        decoded = text.decode("latin-1")
    return decoded.replace("\r\n", "\n").replace("\r", "\n")


def _indices(text: str) -> np.ndarray:
    """(len(text),) uint8 indices into `CHARACTERS`."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return INDEX[np.minimum(codes, len(INDEX) - 1)]


def _windows(texts: list[np.ndarray]) -> Examples:
    """Every window of every text that has a next character; the owner is the number of the text."""
    cut = [np.lib.stride_tricks.sliding_window_view(text, LENGTH + 1) for text in texts if len(text) > LENGTH]
    numbers = [number for number, text in enumerate(texts) if len(text) > LENGTH]
    if not cut:
        raise ValueError(f"shakespeare: no role says more than {LENGTH} characters")
    rows = torch.from_numpy(np.concatenate(cut))
    owners = torch.from_numpy(np.repeat(numbers, [len(windows) for windows in cut]))
    return Examples(rows[:, :LENGTH], rows[:, LENGTH].long(), owners)


def _rows(texts: Any) -> np.ndarray:
    """LEAF's `x`: strings of 80 characters."""
    if (wrong := next((text for text in texts if len(text) != LENGTH), None)) is not None:
        raise ValueError(f"x={wrong[:20]!r}...: must have {LENGTH} characters, has {len(wrong)}")
    return _indices("".join(texts)).reshape(-1, LENGTH)


def _next(characters: Any) -> np.ndarray:
    """LEAF's `y`: one character each."""
    return _indices("".join(characters)).astype(np.int64)
