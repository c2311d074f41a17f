"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017) from their four idx files, gzipped or not."""

import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedpara.data.examples import DataSet, Examples, Normalize
from fedpara.data.files import Loose, place, present, reading, unpacked

IMAGES, LABELS = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"


def _md5s(*md5s: str) -> dict[str, str]:
    names = (f"train-{IMAGES}", f"train-{LABELS}", f"t10k-{IMAGES}", f"t10k-{LABELS}")
    return dict(zip(names, md5s, strict=True))


MNIST = Loose(
    folder="MNIST/raw",
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    files=_md5s(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    contents=_md5s(
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
)
FASHION_MNIST = Loose(
    folder="FashionMNIST/raw",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    files=_md5s(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    contents=_md5s(
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
)
DEBIAN_FASHION_MNIST = replace(  # package dataset-fashion-mnist, compressed anew: paths.data_dir=/usr/share/datasets
    FASHION_MNIST, folder="fashion-mnist", url=""
)


def mnist(data_dir: str) -> DataSet:
    """60,000 train and 10,000 test digits, 1 x 28 x 28, ten classes.

    Args:
        data_dir: the folder that contains `MNIST/raw` (torchvision's layout), or will after the download, or `mnist`.

    Raises:
        FileNotFoundError: files are missing and cannot be downloaded.
        ValueError: a file is damaged or of the wrong kind.
    """
    folder = present(MNIST, Path(data_dir), replace(MNIST, folder="mnist"))
    return read_idx("mnist", folder, Normalize((0.1307,), (0.3081,)))


def fashion_mnist(data_dir: str) -> DataSet:
    """60,000 train and 10,000 test pictures of clothes, 1 x 28 x 28, ten classes; see `mnist`.

    Args:
        data_dir: the folder that contains `FashionMNIST/raw`, or will after the download, or Debian's `fashion-mnist`.
    """
    folder = present(FASHION_MNIST, Path(data_dir), DEBIAN_FASHION_MNIST)
    return read_idx("fashion_mnist", folder, Normalize((0.2860,), (0.3530,)))


def read_idx(name: str, folder: Path, normalize: Normalize) -> DataSet:
    """Training and test examples from the four files of a folder."""
    train, test = (
        Examples(_idx(folder / f"{part}-{IMAGES}", 3)[:, None], _idx(folder / f"{part}-{LABELS}", 1).long())
        for part in ("train", "t10k")
    )
    return DataSet(name, train, test, 10, normalize)


def _idx(path: Path, expected_axes: int) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped or not: 0, 0, type 8, number of axes, their lengths, the values."""
    path = place(path)
    with reading(path, "an idx file of bytes"):
        content = unpacked(path)
        zeros, kind, axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, 4)
        if (zeros, kind, axes) != (0, 8, expected_axes) or len(content) != 4 + 4 * axes + math.prod(shape):
            raise ValueError(f"{len(content)} bytes for {shape}")
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())
