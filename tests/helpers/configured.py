"""What the configs build, and data sets that stand in for real ones."""

from dataclasses import replace
from functools import cache

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from fedpara.app.composition import compose
from fedpara.data import DataSet, Examples, Normalize
from fedpara.data.sets.mnist_small import mnist_small
from helpers import ROOT

ALGORITHMS = sorted(path.stem for path in (ROOT / "configs" / "algorithm").glob("*.yaml"))


def choices_of(*overrides):
    """Which file of each group a command takes."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return hydra.compose("train", [*overrides], return_hydra_config=True).hydra.runtime.choices


@cache
def composed(*overrides):
    return compose(overrides)


def of_yaml(name):
    """An algorithm's class, for much less than composing it."""
    return get_class(OmegaConf.load(ROOT / "configs" / "algorithm" / f"{name}.yaml")._target_)


def named(name):
    """The algorithm as its yaml builds it."""
    return instantiate(composed(f"algorithm={name}").algorithm)


def linked(choice):
    """The link as its yaml builds it; behind the name may be an override."""
    return instantiate(composed(*f"link={choice}".split()).link)


def random_data(data_dir, name):
    """Examples of the shape of a data set, by its name, owned by seven."""
    num_classes = {"cifar100": 100, "femnist": 62, "shakespeare": 80}.get(name, 10)
    shape = {"shakespeare": (80,), "femnist": (1, 28, 28), "mnist": (1, 28, 28)}.get(name, (3, 32, 32))
    largest = num_classes if name == "shakespeare" else 256
    inputs = torch.randint(largest, (200, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    examples = Examples(inputs, torch.arange(200) % num_classes, torch.arange(200) % 7)
    prepare = torch.Tensor.long if name == "shakespeare" else Normalize((0.5,) * shape[0], (0.25,) * shape[0])
    return DataSet(name, examples, examples, num_classes, prepare)


def owned_digits():
    """The small MNIST as if five people had written it."""
    digits = mnist_small()
    return replace(digits, train=replace(digits.train, owners=torch.arange(len(digits.train)) % 5))
