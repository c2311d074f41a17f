"""The folders of both ends: a client's examples, the server's test set, and how an experiment reads them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from fedpara.app.errors import one_line
from fedpara.app.trust import require_trusted
from fedpara.data import DataSet, Examples, Normalize, Partition
from fedpara.data.examples import Prepare
from fedpara.files import UnusableFile
from fedpara.state import State, join, separate
from fedpara.storage import read_tensors, write_tensors

FILE = "data.safetensors"
ABOUT = {"name", "client", "num_classes", "prepare"}
TEST, TRAIN = {"test/inputs", "test/labels"}, {"train/inputs", "train/labels"}


def write_data(folder: Path, data: DataSet, client: int | None = None) -> None:
    """Write a data set for `read_data`, without the owners of its examples.

    Args:
        client: the number of the client who gets it; None: the server, for whom only the test set is written.

    Raises:
        ValueError: the data set's `prepare` has no `to_words`.
    """
    held = {"test": data.test} | ({} if client is None else {"train": data.train})
    parts = {name: {"inputs": examples.inputs, "labels": examples.labels} for name, examples in held.items()}
    about = {"name": data.name, "client": client, "num_classes": data.num_classes, "prepare": _words(data.prepare)}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / FILE, join(parts), {"about": json.dumps(about)})


def read_data(folder: Path | str, trusted: Iterable[str] = ()) -> DataSet:
    """The data set in a folder. The server's has its test set in place of training examples, which no client gets.

    Args:
        trusted: patterns of class names outside this package that `prepare` may have, such as `["mypackage.*"]`.

    Raises:
        UnusableFile: the folder holds none, or a damaged one, or its `prepare` cannot be made again.
        ConfigurationError: the class of its `prepare` is not trusted.
    """
    tensors, about = _read(Path(folder))
    parts = separate(tensors, ["test", "train"])
    test = Examples(**parts["test"])
    train = Examples(**parts["train"]) if parts["train"] else test
    prepare = _from_words(about["prepare"], str(folder), trusted)
    return DataSet(about["name"], train, test, about["num_classes"], prepare)


def owner(folder: Path) -> int:
    """The number of the client whose data are in a folder.

    Raises:
        UnusableFile: the folder holds no data, or the server's.
    """
    _, about = _read(folder)
    if about["client"] is None:
        raise UnusableFile(f"{folder}: holds the server's test set, not a client's data")
    return int(about["client"])


def _read(folder: Path) -> tuple[State, dict[str, Any]]:
    if not (folder / FILE).is_file():
        raise UnusableFile(f"{folder}: holds no {FILE}; python deploy/split.py writes it")
    tensors, metadata = read_tensors(folder / FILE, {})
    about = json.loads(metadata.get("about", "{}"))
    if not (about.keys() >= ABOUT and tensors.keys() in (TEST, TEST | TRAIN)):
        raise UnusableFile(f"{folder / FILE}: must be a file of fedpara.deployment.write_data")
    return tensors, about


def _words(prepare: Prepare) -> Any:
    """`prepare` as JSON; None stands for `Tensor.long`, which is how texts are prepared."""
    if prepare is Tensor.long:
        return None
    if not hasattr(prepare, "to_words"):
        raise ValueError(f"prepare={prepare!r}: must have to_words(), as fedpara.data.Normalize has, for real clients")
    return prepare.to_words()


def _from_words(words: Any, source: str, trusted: Iterable[str]) -> Prepare:
    if words is None:
        return Tensor.long
    if isinstance(words, list):  # mean and deviation: in folders that an earlier version wrote
        return Normalize(*map(tuple, words))
    require_trusted(source, words, trusted)
    try:
        prepare: Prepare = instantiate(words, _convert_="all")
    except HydraException as error:
        raise UnusableFile(f"{source}: its prepare={words} cannot be made again ({one_line(error)})") from error
    return prepare


class Own(Partition):
    """Gives all examples to the client of this folder, and none to the others, whose data are elsewhere.

    Args:
        client: the owner of the folder; None: the server.
    """

    def __init__(self, client: int | None) -> None:
        self.client = client

    def __call__(self, train: Examples, num_clients: int, seed: int) -> list[Tensor]:
        """All indices for the owner, none for the others.

        Raises:
            ValueError: `client` is not below `num_clients`.
        """
        if self.client is not None and self.client >= num_clients:
            raise ValueError(f"client={self.client}: must be below num_clients ({num_clients})")
        return [torch.arange(len(train) if client == self.client else 0) for client in range(num_clients)]

    def test_part(self, own: Examples, test: Examples, seed: int) -> Tensor:
        """All test examples: they were chosen when the data were split."""
        return torch.arange(len(test))


def localised(cfg: DictConfig, folder: Path, client: int | None) -> DictConfig:
    """The same experiment on the data of one folder. They are split and capped already.

    Raises:
        ValueError: it starts from a file, whose path would be the server's; or from frozen weights, which are not sent;
            or it has clients of different size, though each of them would build the whole network first.
    """
    if cfg.federation.get("tiers"):
        raise ValueError("federation.tiers: must be null with real clients, who all build the whole network")
    if cfg.factorization.get("delta"):
        raise ValueError("factorization.delta=True: must be false with real clients, frozen weights are not sent")
    if OmegaConf.select(cfg, "pretrained.file"):
        raise ValueError(f"pretrained.file={cfg.pretrained.file}: must be null with real clients")
    cfg = cfg.copy()
    dataset = {"_target_": "fedpara.deployment.read_data", "folder": str(folder.resolve()), "trusted": cfg.trusted}
    with open_dict(cfg):
        cfg.data.dataset = OmegaConf.create({**dataset, "_partial_": True})
        cfg.data.max_train, cfg.data.max_test, cfg.data.local_fraction, cfg.data.validation = None, None, 1.0, 0.0
        cfg.data.class_range = None
        cfg.partition = OmegaConf.create({"_target_": "fedpara.deployment.folders.Own", "client": client})
    return cfg
