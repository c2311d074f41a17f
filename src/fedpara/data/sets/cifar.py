"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their standard folders of Python pickles, as in torchvision."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedpara.data.examples import DataSet, Examples, Normalize
from fedpara.data.files import Archive, present, reading

CIFAR10 = Archive(
    folder="cifar-10-batches-py",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    files={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
)
CIFAR100 = Archive(
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    files={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
)


def cifar10(data_dir: str, archive: Archive = CIFAR10) -> DataSet:
    """50,000 train and 10,000 test images, 3 x 32 x 32, ten classes.

    Args:
        data_dir: the folder that contains `cifar-10-batches-py`, or will after the download.

    Raises:
        FileNotFoundError: files are missing and cannot be downloaded.
        ValueError: a file is damaged or of the wrong kind.
    """
    folder = present(archive, Path(data_dir))
    *train, test = (_read(folder / name, "labels") for name in archive.files)
    joined = Examples(torch.cat([part.inputs for part in train]), torch.cat([part.labels for part in train]))
    return DataSet("cifar10", joined, test, 10, Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)))


def cifar100(data_dir: str, archive: Archive = CIFAR100) -> DataSet:
    """50,000 train and 10,000 test images, 3 x 32 x 32, a hundred (fine) classes; see `cifar10`."""
    folder = present(archive, Path(data_dir))
    train, test = (_read(folder / name, "fine_labels") for name in archive.files)
    return DataSet("cifar100", train, test, 100, Normalize(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)))


def _read(path: Path, label_key: str) -> Examples:
    """Read one pickle: `data` (N, 3072) uint8, one channel after the other, and a list of labels."""
    with reading(path, "a CIFAR batch"):
        content: Mapping[str, Any] = _ArrayUnpickler(path.read_bytes()).load()
        pixels, labels = torch.from_numpy(content["data"]), torch.tensor(content[label_key])
        return Examples(_checked(pixels, labels).view(-1, 3, 32, 32), labels)


def _checked(pixels: Tensor, labels: Tensor) -> Tensor:
    if pixels.dtype != torch.uint8 or pixels.shape != (len(labels), 3072):
        raise ValueError(f"data is {pixels.dtype} {tuple(pixels.shape)}, expected uint8 ({len(labels)}, 3072)")
    return pixels


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, strings and numbers; refuses every other object, so that a file cannot run code."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """Allow only the classes that a numpy array consists of."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
