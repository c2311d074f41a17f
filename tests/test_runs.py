"""The run folder and its columns: each name is spelt in one place."""

import ast

import pytest
from pytorch_lightning.loggers import CSVLogger

from fedpara import runs
from fedpara.execution.base import FAILURE_KINDS
from fedpara.files import UnusableFile
from fedpara.record import COLUMNS, FATES, RoundRecord
from fedpara.runs import Run, find_runs
from helpers import ROOT

FILES = {runs.METRICS, runs.SUMMARY, runs.CONFIG, runs.OVERRIDES, runs.CHECKPOINT, runs.PARTICIPANTS, runs.PARTITION}
SOURCES = sorted(
    path
    for part in ("src", "deploy", "benchmarks", "tools")
    for path in (ROOT / part).rglob("*.py")
    if ".environments" not in path.parts  # of other simulators, made by `make benchmark`
)
GROUPS = {column.partition("/")[0] for column in COLUMNS} - {"round"}
OTHERS = {"personal/acc", "personal/trained_acc", "clients/table"}  # a histogram, the beginning of a name, a table
OTHERS |= {"cost/round_s"}  # the beginning of names
OTHERS |= {f"{part}/{kind}" for part in ("train", "test") for kind in ("inputs", "labels")}  # of a client's data file


def texts(path):
    """The texts of a module, without its docstrings and the parts of f-strings."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    left_out = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    left_out |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    constants = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in left_out]
    return [node.value for node in constants if isinstance(node.value, str)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_run_folders_files_are_named_in_one_room(path):
    if path.name != "runs.py":
        assert not FILES & set(texts(path))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_metric_that_is_named_is_a_column(path):
    named = {text for text in texts(path) if text.partition("/")[0] in GROUPS and "/" in text and " " not in text}
    whole = {name.removesuffix(".max") for name in named if not name.endswith("/")}
    assert whole - OTHERS <= set(COLUMNS)


def test_a_record_has_the_columns_and_no_other():
    full = RoundRecord(
        1, 0.5, {"test/acc": 0.1, "test/loss": 2.0}, 1, 2, 3, 1, 0.1, 0.2,
        personal_scores=(0.1,), trained_scores=(0.2,), clients=dict.fromkeys(FATES, 0),
    )  # fmt: skip
    assert set(full.as_row()) == set(COLUMNS)


def test_what_may_become_of_a_client_is_what_an_executor_says():
    assert ("succeeded", *FAILURE_KINDS) == FATES


def test_the_folder_of_a_csv_logger_is_not_another_run(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"seed": 0})
    logger.log_metrics({"test/acc": 0.5}, step=1)
    logger.save()
    (tmp_path / "summary.json").write_text("{}")
    assert next(tmp_path.rglob("metrics.csv"))
    assert [run.folder for run in find_runs(tmp_path)] == [tmp_path]


@pytest.mark.parametrize("name", [runs.CONFIG, runs.OVERRIDES])
@pytest.mark.parametrize("content", [b"[seed=0", b"\xff", b"3"])
def test_a_damaged_record_of_what_was_typed_names_its_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    run = Run(tmp_path)
    with pytest.raises(UnusableFile, match=f"{name}: (not valid YAML, or damaged|must be a YAML (mapping|list))"):
        _ = run.config, run.overrides
