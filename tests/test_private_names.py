"""Names of libraries that begin with an underscore: all are in `fedpara.private`, and listed here.

A library may change such a name in any release. This list says where to look before a bound of pyproject.toml rises.
"""

import ast

import pytest

from helpers import ROOT

PACKAGE = ROOT / "src" / "fedpara"
ALLOWED = {
    "hydra": {
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "hydra._internal.hydra.Hydra",
        "hydra._internal.utils._locate",
    },
    "lightning": {
        "pytorch_lightning.loops.fit_loop._FitLoop", "pytorch_lightning.loops.training_epoch_loop._TrainingEpochLoop",
    },
    "torch": {
        "torch._prims_common.suggest_memory_format", "torch.utils._python_dispatch.TorchDispatchMode", "_C", "_VF",
        "_are_functorch_transforms_active", "_inject_new_class", "_inject_property", "_flat_weights_names",
        "_flat_weights", "_parameters", "_buffers", "_step_supports_amp_scaling",
    },
    "wandb": {"_to_model"},
}  # fmt: skip
NOT_OF_LIBRARIES = {"_exit", "_target_"}  # documented by Python and by Hydra, with this underscore


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(path):
    """Imported, read off something that is not the own object, or asked for by `getattr`."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module=module, names=names):
                whole = [f"{module}.{alias.name}" for alias in names]
                yield from (name for name in whole if any(map(is_private, name.split("."))))
            case ast.Import(names=names):
                yield from (alias.name for alias in names if any(map(is_private, alias.name.split("."))))
            case ast.Attribute(value=ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super"))):
                pass
            case ast.Attribute(attr=name) if is_private(name):
                yield name
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]) if is_private(name):
                yield name


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.name)
def test_private_names_of_libraries_have_one_room(path):
    if path.parent != PACKAGE / "private":
        assert set(private_names(path)) <= NOT_OF_LIBRARIES


def test_private_names_are_these():
    found = {path.stem: set(private_names(path)) for path in (PACKAGE / "private").glob("*.py")}
    assert {room: names for room, names in found.items() if names} == ALLOWED
