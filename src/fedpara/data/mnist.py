"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017) from their four gzipped idx files."""

import gzip
import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedpara.data.examples import DataSet, Examples, Normalize
from fedpara.data.files import Loose, present, reading

IMAGES, LABELS = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"
LARGEST = 2**30  # bytes unpacked; the largest of these files has 47 million


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
)
DEBIAN_FASHION_MNIST = Loose(  # package dataset-fashion-mnist, compressed anew: paths.data_dir=/usr/share/datasets
    folder="fashion-mnist",
    url="",
    files=_md5s(
        "cf8536b0aa1a6ac5fa3f23001093305c",
        "10bea18fdb374794d4bb42e356e600c9",
        "f78720b4224f21cce2f2ccf2d7a94c9a",
        "0d30e22e447f3c33dab9ed536400ac01",
    ),
)


def mnist(data_dir: str) -> DataSet:
    """60,000 train and 10,000 test digits, 1 x 28 x 28, ten classes.

    Args:
        data_dir: the folder that holds, or is to hold, `MNIST/raw` (torchvision's layout); or that holds `mnist`.

    Raises:
        FileNotFoundError: files are missing and cannot be downloaded.
        ValueError: a file is not what it should be.
    """
    folder = present(MNIST, Path(data_dir), replace(MNIST, folder="mnist"))
    return read_idx("mnist", folder, Normalize((0.1307,), (0.3081,)))


def fashion_mnist(data_dir: str) -> DataSet:
    """60,000 train and 10,000 test pictures of clothes, 1 x 28 x 28, ten classes; see `mnist`.

    Args:
        data_dir: the folder that holds, or is to hold, `FashionMNIST/raw`; or that holds Debian's `fashion-mnist`.
    """
    folder = present(FASHION_MNIST, Path(data_dir), DEBIAN_FASHION_MNIST)
    return read_idx("fashion_mnist", folder, Normalize((0.2860,), (0.3530,)))


def read_idx(name: str, folder: Path, normalize: Normalize) -> DataSet:
    """Train and test from the four files of a folder."""
    train, test = (
        Examples(_idx(folder / f"{part}-{IMAGES}", 3)[:, None], _idx(folder / f"{part}-{LABELS}", 1).long())
        for part in ("train", "t10k")
    )
    return DataSet(name, train, test, 10, normalize)


def _idx(path: Path, expected_axes: int) -> Tensor:
    """An idx file of unsigned bytes: 0, 0, type 8, number of axes; their lengths; the values."""
    with reading(path, "an idx file of bytes"):
        with gzip.open(path) as stream:
            content = stream.read(LARGEST + 1)
        zeros, kind, axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, 4)
        if (zeros, kind, axes) != (0, 8, expected_axes) or len(content) != 4 + 4 * axes + math.prod(shape):
            raise ValueError(f"{len(content)} bytes for {shape}")
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())
