"""FEMNIST and Shakespeare in LEAF's layout (Caldas et al. 2018): `train/*.json` and `test/*.json`, one user per client.

Each file holds `users` and `user_data[user] = {"x": [...], "y": [...]}`. The files are made by LEAF's own scripts; they
cannot be downloaded.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpara.data.examples import DataSet, Examples, Normalize
from fedpara.data.files import listed, reading

Read = Callable[[Any], np.ndarray]
FEMNIST_NORMALIZE = Normalize((0.9615,), (0.1642,))  # measured on 300 writers; the background is white


def femnist(data_dir: str) -> DataSet:
    """Handwritten characters, 1 x 28 x 28 on white, 62 classes; each example's owner is its writer.

    Args:
        data_dir: the folder that contains `femnist`: LEAF's `train` and `test`, or one npz of the same examples with
            `x` (N, 28, 28) uint8, `y`, `writer` and `split` (0 train, 1 test).

    Raises:
        FileNotFoundError: the files are missing.
        ValueError: a file is damaged or of the wrong kind, or there is more than one npz.
    """
    folder = Path(data_dir) / "femnist"
    packed = listed(folder, "*.npz")
    if packed and not (folder / "train").is_dir():
        if len(packed) > 1:
            raise ValueError(f"{folder}: holds {packed[0].name} and {packed[1].name}; keep one npz")
        return DataSet("femnist", *_packed(packed[0]), 62, FEMNIST_NORMALIZE)
    train, test = leaf(
        folder, read_images, read_classes(62), "data/femnist/preprocess.sh -s niid --sf 1.0 -k 0 -t sample"
    )
    return DataSet("femnist", train, test, 62, FEMNIST_NORMALIZE)


def leaf(folder: Path, inputs: Read, labels: Read, command: str) -> tuple[Examples, Examples]:
    """Train and test examples of a folder in LEAF's layout.

    Args:
        inputs, labels: functions that turn a user's `x` and `y` into arrays.
        command: the LEAF command that makes the files, for the error.

    Raises:
        FileNotFoundError: the files are missing.
        ValueError: a file is not in LEAF's layout, a part has no examples, or a user is in two files of a part.
    """
    owners: dict[str, int] = {}
    return _examples(folder / "train", inputs, labels, owners, command), _examples(
        folder / "test", inputs, labels, owners, command
    )


def _examples(folder: Path, inputs: Read, labels: Read, owners: dict[str, int], command: str) -> Examples:
    files = listed(folder, "*.json")
    if not files:
        raise FileNotFoundError(
            f"{folder}: holds no *.json; make them with LEAF (github.com/TalwalkarLab/leaf): {command}; "
            "then set paths.data_dir (or DATA_DIR)"
        )
    parts, found_in = [], dict[str, Path]()
    for file in files:
        for user, x, y in _users(file, inputs, labels):
            if earlier := found_in.get(user):
                way_out = "all files must come from one run of LEAF; delete the others"
                raise ValueError(f"{file}: user {user} is in {earlier.name} too; {way_out}")
            found_in[user] = file
            parts.append((user, x, y))
    if not any(len(y) for _, _, y in parts):
        raise ValueError(f"{folder}: its {len(files)} *.json files hold no examples")
    numbers = [np.full(len(y), owners.setdefault(user, len(owners))) for user, _, y in parts]
    x, y = np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])
    return Examples(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(np.concatenate(numbers)))


def _users(file: Path, inputs: Read, labels: Read) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    with reading(file, "a file of LEAF"):
        if not file.stat().st_size:
            raise ValueError("the file is empty")
        content = json.loads(file.read_bytes())  # UTF-8 on every system, with or without a byte-order mark
        for user in content["users"]:
            x, y = inputs(content["user_data"][user]["x"]), labels(content["user_data"][user]["y"])
            if len(x) != len(y):
                raise ValueError(f"user {user} has {len(x)} inputs and {len(y)} labels")
            yield user, x, y


def read_images(rows: Any) -> np.ndarray:
    """Rows of 784 numbers from 0 to 1, as uint8 images."""
    pixels = np.asarray(rows, dtype=np.float32).reshape(-1, 1, 28, 28)
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError("pixels must be from 0 to 1")
    return np.rint(255 * pixels).astype(np.uint8)


def read_classes(number: int) -> Read:
    """A reader of labels, which are whole numbers from 0 to `number` - 1."""

    def read(values: Any) -> np.ndarray:
        labels = np.asarray(values, dtype=np.int64)
        if labels.size and not (labels.min() >= 0 and labels.max() < number):
            raise ValueError(f"labels must be from 0 to {number - 1}")
        return labels

    return read


def _packed(file: Path) -> tuple[Examples, Examples]:
    with reading(file, "a packed FEMNIST"):
        with np.load(file, allow_pickle=False) as content:
            x, y, writer, split = (content[name] for name in ("x", "y", "writer", "split"))
        if x.dtype != np.uint8 or x.shape != (len(y), 28, 28) or not y.shape == writer.shape == split.shape:
            raise ValueError(f"x is {x.dtype} {x.shape}, expected uint8 ({len(y)}, 28, 28)")
        labels, owners = torch.from_numpy(read_classes(62)(y)), torch.from_numpy(writer.astype(np.int64))
        images = torch.from_numpy(x)[:, None]
        return _where(split == 0, images, labels, owners), _where(split == 1, images, labels, owners)


def _where(mask: np.ndarray, *tensors: Tensor) -> Examples:
    chosen = torch.from_numpy(np.flatnonzero(mask))
    return Examples(*(tensor[chosen] for tensor in tensors))
