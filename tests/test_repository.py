"""The repository itself: requirements held equal, layers in order, no path of one machine."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers import ROOT

PACKAGE = ROOT / "src" / "fedpara"
# what each part may import of the package; a later entry builds on earlier ones
LAYERS = {
    "state": set(), "metric": set(), "cost": {"metric"}, "record": {"cost", "metric"},
    "errors": set(), "sampling": set(), "files": set(), "heap": set(), "interruption": set(), "old_runs": set(),
    "chain": {"files"}, "products": set(), "installation": set(), "__main__": {"app"},
    "runs": {"files", "metric", "record", "old_runs"},
    "export": {"nn", "models", "data", "state", "metric", "record", "files", "runs", "installation"},
    "dashboard": {"cost", "metric", "record"},
    "report": {"files", "runs", "metric", "record", "cost", "installation"},
    "sharing": {"state", "nn", "sampling"}, "storage": {"state", "files"},
    "private": set(), "nn": {"private"}, "models": {"private", "state", "files"},
    "communication": {"state"}, "privacy": {"state", "algorithms", "communication", "sampling"},
    "algorithms": {"state", "sampling"},
    "aggregation": {"state", "algorithms", "communication", "privacy", "errors"},
    "data": {"sampling", "files"},
    "execution": {
        "private", "state", "sampling", "errors", "heap", "products", "metric", "nn", "models", "data", "algorithms",
        "installation",
    },
    "federation": {
        "state", "record", "errors", "interruption", "sampling", "sharing", "algorithms", "communication", "execution",
        "storage", "metric", "privacy", "aggregation", "nn",
    },
    "callbacks": {
        "state", "metric", "record", "cost", "storage", "files", "runs", "data", "federation", "execution",
        "installation", "export", "privacy", "chain", "communication",
    },
    "app": {
        "state", "record", "errors", "files", "interruption", "old_runs", "runs", "nn", "models", "data", "execution",
        "federation", "callbacks", "export", "private", "metric", "report", "installation", "dashboard", "sharing",
        "chain", "storage", "sampling",
    },
    "deployment": {
        "state", "record", "files", "runs", "storage", "data", "communication", "execution", "federation", "app",
    },
}  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name and name.startswith("fedpara."))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    used = {name.split(".")[1] for name in imports(path)} - {own}
    assert used <= LAYERS[own], f"{own} must not import {used - LAYERS[own]}"


def test_flower_is_for_deploy_alone():
    """Its pins are its own; the package must do without."""
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) flwr", path.read_text(), re.MULTILINE), path


def test_environment_yaml_lists_what_pyproject_lists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(pip) == sorted(project["dependencies"])
    tested = ci_pythons()
    assert f"python{project['requires-python']},<3.{tested[-1] + 1}" in environment["dependencies"]
    versions = [line.rpartition(" ")[2] for line in project["classifiers"] if ":: Python ::" in line]
    assert versions == [f"3.{minor}" for minor in tested]


@pytest.mark.slow  # asks the package index
@pytest.mark.parametrize("minor", [11, 12, 13])
def test_what_environment_yaml_gives_pip_can_be_resolved(tmp_path, minor):
    """For each Python that conda may choose, with the versions that were tested; conda's own part is not tried."""
    assert minor in ci_pythons()
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    (wanted,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    (tmp_path / "wanted.txt").write_text("\n".join(wanted))
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", "wanted.txt", "--no-annotate", "--no-header"]
    command += ["-c", ROOT / "constraints.txt", "--python-version", f"3.{minor}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = {canonicalize_name(Requirement(line).name) for line in done.stdout.splitlines()}
    assert found >= {canonicalize_name(Requirement(line).name) for line in wanted}


def ci_pythons():
    """The minor versions of Python 3 that CI tests, in order."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    return [
        int(version.partition(".")[2]) for version in workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    ]


def pins(name):
    """Versions by package and the marker under which they hold, of a constraints file."""
    lines = [Requirement(line) for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {(line.name, str(line.marker or "")): str(line.specifier).removeprefix("==") for line in lines}


def test_every_requirement_has_a_pin_that_it_allows():
    """`make lock` writes constraints.txt; Flower and Slurm have environments of their own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [
        *project["dependencies"],
        *(one for name in ("export", "dashboard", "privacy", "ray", "dev") for one in extras[name]),
    ]
    pinned = pins("constraints.txt")
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        versions = [version for (pin, _), version in pinned.items() if pin == name]
        assert name == "fedpara" or versions, requirement
        assert all(version in requirement.specifier for version in versions), requirement
    cpu = set(pins("constraints-cpu.txt").values())
    assert {version.partition("+")[0] for version in cpu} == {pinned["torch", ""]}


def test_no_path_of_one_machine_and_no_secret_in_configs():
    for path in [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "src").rglob("*.py")]:
        text = path.read_text()
        assert "/root/" not in text, path
        assert "/home/" not in text, path
        assert "api_key:" not in text.lower(), path


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.name)
def test_what_is_optional_is_imported_only_when_it_is_used(path):
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in top}
    assert not {name.partition(".")[0] for name in names} & {"ray", "flwr", "dp_accounting"}
