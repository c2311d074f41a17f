"""The blocks of README and docs/ after `<!-- tested: run -->`, run in an empty folder with a tiny model."""

import runpy
import subprocess
from types import SimpleNamespace

import pytest

from fedpara.app import sweep
from fedpara.runs import find_runs
from helpers import ROOT
from helpers.shell import SMALL, Forked, newest
from website.commands import blocks

# how the reader's own folders are found
OWN = {"<run>": "runs", "<sweep>": "multiruns"}
MARKED = [block for block in blocks() if block.runs]
IGNORED = ["source", ".venv/bin/activate"]


def program(path):
    """A program of src/, as `python src/<name>.py` runs it."""
    run = lambda: runpy.run_path(str(ROOT / path), run_name="__main__")  # noqa: E731
    return SimpleNamespace(__name__=path.removesuffix(".py"), main=run)


def test_readme_and_the_queue_have_such_blocks():
    assert {block.page for block in MARKED} >= {"README.md", "docs/reproduce/tables.md"}


DEAR = {"README.md", "docs/guides/models.md"}  # many commands


@pytest.mark.parametrize(
    "block",
    [pytest.param(b, marks=[pytest.mark.slow] if b.page in DEAR else [], id=b.page) for b in MARKED],
)
def test_the_commands_run(block, shell, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": Forked}))
    run = []
    for words in block.lines():
        if words == IGNORED:
            continue
        python, script, *arguments = words
        assert python == "python"
        for own, kind in OWN.items():
            arguments = [word.replace(own, newest(tmp_path, kind).name) if own in word else word for word in arguments]
        if any(word.startswith("resume=") for word in words):
            arguments.append("federation.num_rounds=3")
        elif script == "src/train.py":
            arguments += [word for word in SMALL if word.partition("=")[0] not in " ".join(arguments)]
        status, error, out = shell(*arguments, program=program(script))
        assert status in (0, None), f"{' '.join(words)}: {error}\n{out[-3000:]}"
        assert out
        run.append(script)
    assert run
    if "src/train.py" in run:
        found = find_runs(tmp_path / "logs")
        assert found
        assert {one.state for one in found} == {"finished"}, {one.name: (one.state, one.summary) for one in found}
        assert {len(one.rows) for one in found} == ({2, 3} if "resume=" in block.text else {2})
    if "src/report.py" in run:
        assert list((tmp_path / "logs/train/multiruns").glob("*/report/report.html"))
