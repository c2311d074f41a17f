"""configs/: its index is complete, defaults are the signatures', targets are public names, tags are set."""

import inspect
import re

import pytest
import yaml
from hydra.errors import HydraException
from hydra.utils import get_object

from fedpara.app.build import build
from fedpara.app.composition import compose
from fedpara.old_runs import modernised, retyped
from helpers import ROOT

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
NAMES = [str(path.relative_to(CONFIGS).with_suffix("")) for path in FILES]
# what a yaml chooses against its class's default, and why
CHOSEN = {
    "pytorch_lightning.Trainer": "Lightning's defaults are not a client's",
    "pytorch_lightning.loggers.CSVLogger": "Lightning's",
    "torch.optim.SGD": "torch's learning rate is 0.001",
    "fedpara.communication.Link error_feedback": "top-k needs it",
    "fedpara.nn.PFedPara gamma": "Fig. 5's; FedPara's own default is Table 2's",
}


def targets(node, where=""):
    """Every node that builds something, with its dotted place."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for name, value in node.items():
            yield from targets(value, f"{where}.{name}".lstrip("."))


def loaded(path):
    return yaml.safe_load(path.read_text()) or {}


BUILDING = [
    (name, where, node) for name, path in zip(NAMES, FILES, strict=True) for where, node in targets(loaded(path))
]


@pytest.mark.parametrize(("name", "where", "node"), BUILDING, ids=[f"{name}:{where}" for name, where, _ in BUILDING])
def test_yaml_and_signature_have_the_same_defaults(name, where, node):
    target = node["_target_"]
    if target.endswith(".SweepTable"):
        return
    parameters = inspect.signature(get_object(target)).parameters
    for key, value in node.items():
        plain = not key.startswith("_") and not isinstance(value, dict) and "${" not in str(value)
        if not plain or value == "???" or {target, f"{target} {key}"} & CHOSEN.keys():
            continue
        default = parameters[key].default if key in parameters else inspect.Parameter.empty
        if default is not inspect.Parameter.empty:
            same = value == default or (value == [] and default is None)
            assert same, f"{name}.yaml {key}={value}, {target}({key}={default})"


@pytest.mark.parametrize(
    "target", sorted({node["_target_"] for _, _, node in BUILDING if "fedpara" in node["_target_"]})
)
def test_targets_are_public_names_of_packages(target):
    """`fedpara.data.IID` and not the module it is in, which may move; what has no package is in a module of its own."""
    package, _, name = target.rpartition(".")
    module = __import__(package, fromlist=["_"])
    assert hasattr(module, "__path__") or package in {"fedpara.sharing", "fedpara.app.sweep_table"}, target
    assert name in getattr(module, "__all__", [name])


def test_the_index_lists_every_folder_and_choice():
    index = (CONFIGS / "README.md").read_text()
    listed = {
        group: set(re.findall(r"`([^`]+)`", choices))
        for group, choices in re.findall(r"^\| `([\w/]+)=` \|[^|]*\| ([^|]*) \|$", index, re.MULTILINE)
    }
    there = {}
    for name in NAMES:
        group, _, choice = name.partition("/")
        if name.startswith("hydra/launcher/"):
            group, _, choice = name.rpartition("/")
        if choice:
            there.setdefault(group, set()).add(choice)
    there.pop("hydra")
    assert listed == there


def test_presets_are_those_that_set_keys_of_every_group():
    index = (CONFIGS / "README.md").read_text()
    overlays = [name for name, path in zip(NAMES, FILES, strict=True) if "@package _global_" in path.read_text()]
    presets = {name.partition("/")[0] for name in overlays}
    table = index.partition("## Presets")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)=`", table, re.MULTILINE)) == presets


@pytest.mark.parametrize("path", sorted((CONFIGS / "setting").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_setting_is_tagged_with_its_own_name(path):
    assert loaded(path)["paper"]["column"] == path.stem


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_comments_are_no_longer_than_a_screen_is_wide(path):
    long = [line for line in path.read_text().splitlines() if len(line) > 130 and "#" in line]
    assert not long


@pytest.mark.parametrize(
    ("typed", "rate"),
    [
        ("algorithm=fedadam", 0.0316),
        ("algorithm=fedadam setting=cifar10_iid", 0.0316),
        ("experiment=paper/table3 algorithm=fedadam", 0.0316),
        ("algorithm=fedadam model.optimizer.lr=0.2", 0.2),
        ("algorithm=fedyogi", 0.1),
        ("experiment=paper/table3", 0.1),
    ],
)
def test_an_algorithm_has_its_own_local_rate_unless_one_is_typed(typed, rate):
    assert compose(typed.split(" ")).model.optimizer.lr == rate


@pytest.mark.parametrize("setting", ["cifar100_iid", "femnist"])
def test_a_dense_run_has_no_gamma(setting):
    """Nor anything else that W&B's columns would show of factors that it lacks."""
    assert dict(compose([f"setting={setting}", "factorization=dense"]).factorization) == {
        "_target_": "fedpara.nn.Dense"
    }
    with pytest.raises(HydraException, match=r"factorization\.gamma"):
        compose([f"setting={setting}", "factorization=dense", "factorization.gamma=0.4"])
    for choice, gamma in (("dense", None), ("fedpara", 0.2), ("low_rank", 0.2)):
        cfg = compose([f"setting={setting}", f"factorization={choice}", "factors.gamma=0.2"])
        assert cfg.factorization.get("gamma") == gamma


def test_the_personal_rate_is_a_multiple_of_the_optimizers():
    cfg = compose(["model=mlp", "method=pfedpara", "model.optimizer.lr=0.02", "sharing.personal_rate=4", "trainer=cpu"])
    experiment, federation = build(cfg)
    shared, own = experiment.executor.module.configure_optimizers().param_groups
    assert (shared["lr"], own["lr"]) == (0.02, 0.08)
    assert len(own["params"]) == len(federation.split.personal) == 4


def test_what_old_runs_say_is_said_in_todays_words():
    old = {
        "data": {"dataset": {"_target_": "fedpara.data.mnist.mnist"}},
        "algorithm": {"_target_": "fedpara.algorithms.fedopt.FedAdam"},
        "factorization": {"_target_": "fedpara.nn.Dense", "gamma": 0.3, "num_dense": 0},
        "model": {"optimizer": {"lr": 0.1}},
    }
    new = modernised(old)
    assert new["data"]["dataset"]["_target_"] == "fedpara.data.mnist"
    assert new["algorithm"]["_target_"] == "fedpara.algorithms.FedAdam"
    assert new["factorization"] == {"_target_": "fedpara.nn.Dense"}
    assert modernised(new) == new
    typed = ["factorization=dense", "factorization.gamma=0.3", "seed=1"]
    assert retyped(typed, old) == ["factorization=dense", "seed=1", "model.optimizer.lr=0.1"]
    assert retyped(typed, old | {"factors": {}}) == typed


def test_a_run_keeps_a_value_that_was_the_default_then_and_is_null_now():
    inner = {"matmul_precision": "highest", "whole_epochs": False}
    was = {"factors": {}, "executor": {"inner": inner}}
    assert retyped(["seed=1"], was) == [
        "seed=1", "executor.inner.whole_epochs=False", "executor.inner.matmul_precision=highest",
    ]  # fmt: skip
    typed = ["executor.inner.whole_epochs=true", "executor.inner.matmul_precision=high"]
    assert retyped(typed, was) == typed
    assert retyped([], {"factors": {}, "executor": dict.fromkeys(inner)}) == []
