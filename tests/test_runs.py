"""The run folder and its columns: each name is spelt in one place."""

import ast

import pytest
import yaml
from pytorch_lightning.loggers import CSVLogger

from fedpara import runs
from fedpara.app.status import status
from fedpara.execution.base import FAILURE_KINDS
from fedpara.files import UnusableFile
from fedpara.record import COLUMNS, FATES, RoundRecord
from fedpara.report import settings
from fedpara.runs import Run, axes, find_runs
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
OTHERS |= {"cost/round_s", "test/acc_phone", "test/acc_server"}  # the beginning of names, columns of two tiers
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


def typed_run(folder, typed, config=None):
    """A run folder in which nothing was trained."""
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text(yaml.safe_dump(typed))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return Run(folder)


@pytest.mark.parametrize("known", [True, False], ids=["config", "typed alone"])
@pytest.mark.parametrize(
    ("key", "texts", "value"),
    [
        ("federation.catch_up", ["true", "True"], True),
        ("aggregation.radius", ["0.10", "0.1", "1e-1"], 0.1),
        ("data.class_range", ["[0, 10]", "[0,10]"], [0, 10]),
        ("federation.tiers", ["null", "Null"], None),
        ("model.optimizer.lr", ["1", "1.0"], 1),
        ("data.transform", ["'crop'", "crop"], "crop"),
    ],
)
def test_a_value_that_is_typed_in_several_ways_is_one(tmp_path, key, texts, value, known):
    node = value
    for name in reversed(key.split(".")):
        node = {name: node}
    config = node if known else None
    runs = [
        typed_run(tmp_path / str(seed), [f"{key}={text}", f"seed={seed}"], config) for seed, text in enumerate(texts)
    ]
    assert axes(runs) == {"seed": [str(seed) for seed in range(len(texts))]}
    assert [len(one.runs) for one in settings(runs)] == [len(texts)]
    other = typed_run(tmp_path / "other", [f"{key}=7", "seed=0"], {} if known else None)
    name = key.rpartition(".")[2]
    assert axes([*runs, other])[name] == [texts[0]] * len(texts) + ["7"]
    if known:
        assert axes([*runs[1:], typed_run(tmp_path / "untyped", ["seed=9"], config)]).keys() <= {"seed"}


def test_a_choice_is_compared_by_its_name_and_a_group_by_its_values(tmp_path):
    tiers = {"a": {"share": 0.5}, "b": {"share": 0.5}}
    typed = ["federation.tiers={a:{share:0.5},b:{share:0.5}}", "federation.tiers={a: {share: 0.5}, b: {share: 0.50}}"]
    runs = [
        typed_run(tmp_path / str(n), [one, "factorization=dense", f"seed={n}"],
                  {"federation": {"tiers": tiers}, "factorization": {"gamma": n}})
        for n, one in enumerate(typed)
    ]  # fmt: skip
    assert list(axes(runs)) == ["seed"]


RESUMED = {  # typed to resume a run, and for all jobs of its sweep
    "data.eval_batch_size=7": "data.eval_batch_size=5", "executor.workers=3": "executor.workers=2",
    "executor=vectorized": "executor=serial", "trainer.accelerator=cpu": "trainer.accelerator=gpu",
    "trainer=cpu": "trainer=default", "federation.max_crashes=3": "federation.max_crashes=2",
    "federation.num_rounds=90": "federation.num_rounds=50", "pretrained.file=/elsewhere": "pretrained.file=/there",
}  # fmt: skip


@pytest.mark.parametrize("key", RESUMED)
@pytest.mark.parametrize("swept", [True, False])
def test_what_was_typed_to_resume_a_run_does_not_part_it_from_its_other_seeds(tmp_path, key, swept):
    other = [RESUMED[key]] if swept else []
    typed = [["factors.gamma=0.1", "seed=0", key], ["factors.gamma=0.1", "seed=1", *other]]
    typed += [["factors.gamma=0.2", f"seed={seed}", *other] for seed in (0, 1)]
    known = [typed_run(tmp_path / str(number), one) for number, one in enumerate(typed)]
    assert list(axes(known)) == ["gamma", "seed"]
    assert [(one.label, len(one.runs)) for one in settings(known)] == [("gamma=0.1", 2), ("gamma=0.2", 2)]


def test_a_sweep_over_a_key_that_decides_no_result_has_it_as_its_axis(tmp_path):
    names = {"executor=serial": 0, "executor=vectorized": 0, "executor=auto": 1}
    runs = [typed_run(tmp_path / name, [name, f"seed={seed}"]) for name, seed in names.items()]
    assert axes(runs) == {"executor": ["serial", "vectorized", "auto"], "seed": ["0", "0", "1"]}
    (tmp_path / "b").mkdir()
    elsewhere = typed_run(tmp_path / "b" / "run", ["executor=serial", "seed=1"])
    assert list(axes([runs[0], elsewhere])) == ["seed"]


def test_only_the_accelerator_is_set_by_the_choice_of_the_processor():
    (key, choice), setting = runs.ON_CPU, {"defaults": ["default"], "accelerator": "cpu"}
    assert yaml.safe_load((ROOT / "configs" / key / f"{choice}.yaml").read_text()) == setting


def test_runs_behind_links_are_found_and_each_once(tmp_path, monkeypatch):
    real = typed_run(tmp_path / "all" / "real", ["seed=0"]).folder
    (tmp_path / "all" / "latest").symlink_to(real)
    (tmp_path / "all" / "loop").symlink_to(tmp_path / "all")
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "one").symlink_to(real)
    (tmp_path / "chosen" / "sweep").symlink_to(tmp_path / "all")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    found = {name: [str(run.folder) for run in find_runs(*name.split())] for name in ("all", "chosen", f"all {real}")}
    assert found == {"all": ["all/real"], "chosen": ["chosen/one"], f"all {real}": ["all/real"]}
    assert status([*map(type(real), ("all", "chosen", tmp_path / "all"))]).row_count == 1


def test_a_run_has_the_name_of_its_folder_from_within(tmp_path, monkeypatch):
    folder = typed_run(tmp_path / "run-3", ["factors.gamma=0.1"]).folder
    (folder / "clients").mkdir()
    monkeypatch.chdir(folder)
    (run,) = find_runs(type(folder)("."))
    assert (run.name, run.seed) == ("run-3", "3")
    assert list(status([type(folder)(".")]).columns[0].cells) == ["run-3"]
    monkeypatch.chdir(folder / "clients")
    assert Run(type(folder)("..")).name == "run-3"
