"""Ordinary uses: every documented key once, new and relative and oddly named folders, other sweepers, what is shown."""

import csv
import io
import json
import math
import re
import subprocess
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf
from rich.console import Console

from fedpara.app import evaluation, sweep
from fedpara.data import Dirichlet, Examples
from fedpara.files import reserve
from fedpara.runs import Run, find_runs
from helpers import ROOT
from helpers.cases import thinned
from helpers.shell import Forked, newest, states

TINY = [
    "model=mlp", "data.max_train=40", "data.max_test=20", "data.batch_size=8", "federation.num_clients=2",
    "federation.clients_per_round=1", "federation.num_rounds=1", "trainer.max_epochs=1", "logger=none",
    "callbacks.partition_picture=null",
]  # fmt: skip
ODD = "o'b r,s=t [x] $u {v} ü"

# a value of each key that docs/reference/keys.md and the design's list name, beside those that TINY has
DOCUMENTED = {
    "experiment": "quickstart", "setting": "mnist_shards data=mnist_small", "method": "fedper", "model": "mlp",
    "factorization": "low_rank", "factorization.gamma": "0.3", "federation.num_clients": "3",
    "federation.clients_per_round": "2", "federation.num_rounds": "2", "federation.eval_every": "2",
    "trainer.max_epochs": "2", "trainer.precision": "bf16-mixed", "trainer.accelerator": "cpu", "data.batch_size": "5",
    "data.max_train": "50", "data.max_test": "30", "data.local_fraction": "0.5", "algorithm": "fedprox",
    "sharing": "fedper", "partition": "dirichlet", "partition.alpha": "0.5 partition=dirichlet", "executor": "auto",
    "executor.whole_epochs": "true", "executor.matmul_precision": "medium", "executor.capture": "false",
    "executor.workers": "1 executor=processes", "executor.threads": "1 executor=processes", "link": "fedpaq",
    "link.up_codec.bits": "4 link=fedpaq",
    "faults": "flaky federation.min_clients=1 faults.crash=0 faults.nan=0", "faults.dropout": "0.01",
    "federation.min_clients": "1", "federation.retries": "1", "logger": "csv", "seed": "3", "trusted": "[mypackage.*]",
    "paths.data_dir": "new/data", "paths.output_dir": "new/er/run", "hydra.run.dir": "new/run", "debug": "default",
    "callbacks.checkpoint.every": "2", "callbacks.checkpoint.memory_gb": "0.5", "hydra.job.chdir": "true",
    "paths.log_dir": "new/logs", "trainer": "cpu", "data": "mnist_small", "callbacks": "default", "paths": "default",
    "federation": "default", "resume": "null", "data.lone_example": "merge", "federation.max_crashes": "null",
    "callbacks.audit.keep": "2 callbacks=audited",
    "callbacks.clients.every": "2 callbacks=clients", "callbacks.clients.max_rows": "10 callbacks=clients",
    "logger.wandb.project": "mine logger=wandb", "logger.wandb.group": "mine logger=wandb",
    "logger.wandb.job_type": "pilot logger=wandb", "logger.wandb.name": "mine logger=wandb",
    "logger.wandb.tags": "[a,b] logger=wandb", "logger.wandb.notes": "pilot logger=wandb",
    "logger.wandb.target": "0.5 logger=wandb", "logger.wandb.alerts": "false logger=wandb",
    "logger.wandb.client_rows": "10 logger=wandb",
    "factorization.initialization": "he", "factorization.budget": "0.4", "factorization.num_dense": "1",
    "factorization.step": "0.5",
    "factorization.delta": "true", "factorization.trainable": "[layers.3.*] factorization.delta=true",
    "pretrained.file": "null", "data.class_range": "[0,5] data.num_classes=5",
    "algorithm.recycled": "0.3 algorithm=fedluar", "link.up_codec.share": "0.2 link=topk",
    "link.error_feedback": "true link=fedpaq", "sharing.groups": "factors sharing=rotating",
    "federation.tiers": "{a:{share:0.5,gamma:0},b:{share:0.5,gamma:0.1}}",
    "factorization.ratio": "0.2 factorization=mud", "factorization.aad": "false factorization=mud",
    "factorization.kronecker": "true factorization=mud", "factorization.a": "0.5 factorization=mud",
    "federation.catch_up": "true", "data.validation": "0.2", "sharing.personal_rate": "4 sharing=fedper",
    "logger.wandb.log_model": "true logger=wandb",
    "aggregation": "median", "aggregation.attackers": "0 aggregation=trimmed_mean",
    "aggregation.bound": "0.5 aggregation=norm_bounding", "faults.attackers": "1 faults=sign_flip",
    "faults.strength": "3 faults=scaled_update faults.attackers=0.5",
    "privacy": "gaussian privacy.noise_multiplier=0", "privacy.target_epsilon": "50 privacy=gaussian",
    "privacy.noise_multiplier": "0 privacy=gaussian", "privacy.clip": "0.5 privacy=adaptive privacy.noise_multiplier=0",
    "privacy.delta": "0.1 privacy=gaussian privacy.noise_multiplier=0",
    "logger.wandb.registry": "wandb-registry-model/digits logger=wandb logger.wandb.log_model=true",
}  # fmt: skip
# tried one by one where it matters what a key does alone; the others one by one are slow, and all in one run besides
ALONE = {
    "paths.data_dir", "paths.output_dir", "hydra.run.dir", "hydra.job.chdir", "paths.log_dir", "resume", "trusted",
    "debug",
}  # fmt: skip
TOGETHER = {
    "factorization.gamma", "federation.num_clients", "federation.clients_per_round", "federation.num_rounds",
    "federation.eval_every", "trainer.max_epochs", "trainer.accelerator", "data.batch_size", "data.max_train",
    "data.max_test", "data.local_fraction", "executor.whole_epochs", "executor.capture", "link.up_codec.bits",
    "faults.dropout", "federation.min_clients", "federation.retries", "seed", "callbacks.checkpoint.every",
    "partition.alpha", "callbacks.clients.every", "callbacks.clients.max_rows",
    "callbacks.checkpoint.memory_gb", "federation.catch_up", "link.error_feedback",
    "sharing.groups", "data.lone_example", "federation.max_crashes", "data.validation",
    "factorization.delta", "pretrained.file",
}  # fmt: skip


def test_documented_keys_go_together(shell):
    typed = [word for key in sorted(TOGETHER) for word in f"{key}={DOCUMENTED[key]}".split(" ")]
    kept = [option for option in TINY if option.partition("=")[0] not in TOGETHER]
    status, error, _ = shell(*kept, *typed)
    assert status == 0, error


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=[] if key in ALONE else [pytest.mark.slow]) for key in DOCUMENTED]
)
def test_every_documented_key_as_one_would_type_it(shell, key):
    typed = f"{key}={DOCUMENTED[key]}".split(" ")
    kept = [option for option in TINY if option.partition("=")[0] != key]
    status, error, _ = shell(*kept, *typed)
    assert status == 0, error


def test_every_key_of_the_usual_keys_is_tried():
    table = (ROOT / "docs/reference/keys.md").read_text().split("| key | meaning | default |")[1].split("\n\n")[0]
    named = set()
    for row in table.splitlines()[2:]:
        owner = ""
        for word in re.findall(r"`([^`]+)`", row.split("|")[1]):
            owner = word.rpartition(".")[0] if not word.startswith(".") else owner
            named.add(word if not word.startswith(".") else owner + word)
    assert len(named) > 25
    assert named - {"..."} <= set(DOCUMENTED)


def test_a_reservation_makes_its_folder(tmp_path):
    reserve(tmp_path / "a" / "b").close()
    assert (tmp_path / "a" / "b" / ".lock").is_file()


@pytest.mark.slow
def test_folders_hold_when_the_process_is_elsewhere(shell, tmp_path, monkeypatch):
    """Typed relative, in a folder with an odd name; then resumed and tested from another."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    here = tmp_path / ODD
    here.mkdir()
    monkeypatch.chdir(here)
    typed = [option for option in TINY if option != "logger=none"]
    typed += ["paths.data_dir=data", "paths.log_dir=logs", "hydra.job.chdir=true", "logger=csv", "hydra.run.dir=run"]
    status, error, out = shell(*typed)
    assert status == 0, error
    assert "run folder: run (" in out
    folder = here / "run"
    saved = OmegaConf.load(folder / "config.yaml")
    assert saved.paths.data_dir == str(here / "data")
    assert saved.paths.output_dir == saved.logger.csv.save_dir == str(folder)
    assert {path.name for path in here.iterdir()} == {"run"}
    monkeypatch.chdir(tmp_path)
    assert shell(f"run={ODD}/run", program=evaluation)[0] == 0
    status, error, _ = shell(f"resume={ODD}/run", "federation.num_rounds=2")
    assert status == 0, error
    assert len(Run(folder).rows) == 2
    assert OmegaConf.load(folder / "config.yaml").paths.data_dir == str(here / "data")
    status, error, _ = shell(*TINY, f"hydra.run.dir={tmp_path}/'a\\${{b}}'")
    assert (status, error.count("\n")) == (2, 1)
    assert "must be a folder without ${ in its path" in error


def test_relative_folders_of_the_environment_of_a_yaml_and_of_older_runs(shell, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", "data")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.yaml").write_text("defaults: [train, _self_]\npaths: {log_dir: logs of mine}")
    monkeypatch.chdir(tmp_path)
    assert shell("--config-dir=own", "--config-name=mine", *TINY, "hydra.job.chdir=true")[0] == 0
    (folder,) = (tmp_path / "logs of mine" / "train" / "runs").iterdir()
    assert OmegaConf.load(folder / "config.yaml").paths.data_dir == str(tmp_path / "data")
    assert Run(folder).started_in == tmp_path
    (folder / "overrides.yaml").write_text(yaml.safe_dump([*TINY, "paths.data_dir=data", "paths.log_dir=logs of mine"]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("DATA_DIR")
    status, error, _ = shell(f"resume={folder}", "federation.num_rounds=2")
    assert status == 0, error
    assert OmegaConf.load(folder / "config.yaml").paths.data_dir == str(tmp_path / "data")


class Strict(Sweeper):
    """As strict as sweepers that optimise: it wants a finite number of every job, and writes no multirun.yaml."""

    results: list[float] = []

    def __init__(self, direction, params, max_batch_size):
        self.direction = direction

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        fixed = [argument for argument in arguments if "choice(" not in argument]
        for number, rate in enumerate((-1, 0.1, -2)):
            (job,) = self.launcher.launch([[f"model.optimizer.lr={rate}", *fixed]], initial_job_idx=number)
            self.results.append(float(job.return_value))
            assert math.isfinite(self.results[-1])


@pytest.fixture
def strict(monkeypatch):
    Strict.results = []
    Strict.__module__ = "hydra_plugins.strict"
    module = ModuleType("hydra_plugins.strict")
    module.Strict = Strict
    monkeypatch.setitem(__import__("sys").modules, "hydra_plugins.strict", module)
    Plugins.instance().register(Strict)
    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": Forked}))


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_sweeper_that_optimises_goes_on_after_a_failed_job(shell, tmp_path, monkeypatch, strict, direction):
    monkeypatch.setenv("WANDB_MODE", "disabled")  # only what it would be told is looked at
    typed = [option for option in TINY if option != "logger=none"]
    own = ["hydra.sweeper._target_=hydra_plugins.strict.Strict"]
    status, error, out = shell(
        "-m", *typed, *own, f"+hydra.sweeper.direction={direction}", "model.optimizer.lr=choice(-1,0.1,-2)"
    )
    assert (status, error.splitlines()[-1]) == (1, "error: not finished: lr=-2, lr=-1")
    assert states(out) == {"-2": "failed", "-1": "failed", "0.1": "finished"}
    worst, best = (0.0, max) if direction == "maximize" else (1.0, min)
    first, second, third = Strict.results
    assert first == third == worst
    assert second == best(Strict.results) == Run(newest(tmp_path, "multiruns") / "lr=0.1").last("test/acc")
    assert ("looks for the lowest accuracy" in out) == (direction == "minimize")
    folder = newest(tmp_path, "multiruns")
    assert not (folder / "multirun.yaml").exists()
    named = OmegaConf.load(folder / "lr=0.1" / "config.yaml").logger.wandb
    assert (named.id, named.name, named.group) == (f"{folder.name}-lr-0.1", "lr=0.1", folder.name)
    assert shell(f"resume={folder / 'lr=0.1'}", "federation.num_rounds=2")[0] == 0
    again = OmegaConf.load(folder / "lr=0.1" / "config.yaml").logger.wandb
    assert (again.id, again.name, again.group) == (named.id, named.name, named.group)
    assert not any(key.startswith("hydra") for run in find_runs(folder) for key in run.overrides)


@pytest.mark.slow  # needs hydra-optuna-sweeper, whose Optuna is an old one
def test_optuna_itself(shell, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    own = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.direction=maximize",
    ]
    status, error, out = shell("-m", *own, *TINY, "model.optimizer.lr=choice(-1,-2)")
    assert status == 1
    assert error.splitlines()[-1].startswith("error: not finished: lr=-")
    assert len(re.findall(r"#\d : model.optimizer.lr=-", out)) == 3


def test_a_job_that_failed_after_a_good_round_is_no_good_result(tmp_path, monkeypatch):
    """What metrics.csv holds of a run that diverged is not what a sweeper gets."""
    with (tmp_path / "metrics.csv").open("w") as stream:
        csv.writer(stream).writerows([["round", "test/acc"], [1, 0.9]])
    (tmp_path / "summary.json").write_text(json.dumps({"state": "failed", "rounds": 1}))
    assert Run(tmp_path).last("test/acc") == 0.9
    monkeypatch.setattr(sweep, "run_job", lambda *arguments, **options: None)
    hydra_cfg = OmegaConf.create(
        {"runtime": {"choices": {"hydra/launcher": "basic"}, "cwd": str(tmp_path), "config_sources": []}, "sweeper": {},
         "job": {"num": 0, "config_name": "train"}, "overrides": {"task": [], "hydra": []}}
    )  # fmt: skip
    cfg = OmegaConf.create({"paths": {"output_dir": str(tmp_path)}, "federation": {"num_rounds": 2}, "model": {}})
    assert sweep.job(cfg, hydra_cfg) == 0.0


@pytest.mark.parametrize("part", ["job", "all", "hydra"])
@pytest.mark.parametrize(
    "more", [[], ["--package", "model"], ["--package", "hydra.run"]], ids=["whole", "model", "run"]
)
def test_configurations_are_printed_and_resolved(shell, tmp_path, part, more):
    if more and (more[1] == "model") == (part == "hydra"):
        pytest.skip("the part is not there")
    if more and more[1] == "hydra.run" and part == "job":
        pytest.skip("the part is not there")
    status, error, out = shell("--cfg", part, "--resolve", *more)
    assert (status, error) == (0, "")
    assert "${" not in out
    assert yaml.safe_load(out)
    assert shell("--cfg", part, *more)[0] == 0


@pytest.mark.parametrize("what", ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"])
def test_information_is_printed(shell, what):
    assert shell("--info", what)[:2] == (0, "")


HOPELESS = "partition=dirichlet partition.alpha=0.001 partition.min_examples=3"
NAMED = {
    "logger=wandb logger.wandb.project=a/b": "logger.wandb.project='a/b': W&B does not accept it (Invalid project name",
    "logger=wandb +logger.wandb.entity=a/b": "logger.wandb.entity='a/b': W&B does not accept it (Invalid project name",
    "logger=wandb logger.wandb.id=a/b": "logger.wandb.id='a/b': W&B does not accept it (Run ID cannot contain",
    f"logger=wandb logger.wandb.tags=[{'x' * 65}]": f"logger.wandb.tags=['{'x' * 65}']: W&B does not accept it (",
    f"logger=wandb logger.wandb.group={'x' * 129}": f"logger.wandb.group='{'x' * 129}': must be a text of 1 to 128",
    "logger=wandb logger.wandb.project=''": "logger.wandb.project='': must be a text of 1 to 128 characters",
    "seed=99999999999999999999": "seed=99999999999999999999: must be a whole number, 0 to 2^63 - 1",
    "seed=true": "seed=True: must be a whole number, 0 to 2^63 - 1",
    "model.network._target_=test_usage.Complex ~model.network.widths": "model.network: w, b: must be real",
    f"{HOPELESS} federation.num_clients=13": "partition.alpha=0.001: 1000 draws left a",
}  # fmt: skip


class Complex(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(784, 10, dtype=torch.complex64))
        self.register_buffer("b", torch.zeros(10, dtype=torch.complex64))


@pytest.mark.parametrize("typed", thinned(NAMED))
def test_a_line_names_its_cause(shell, typed):
    status, error, _ = shell(*TINY, *typed.split(" "))
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith(f"error: {NAMED[typed]}"), error


def test_the_largest_seed(shell):
    assert shell(*TINY, f"seed={2**63 - 1}", "algorithm=scaffold", "link=fedpaq")[0] == 0


def test_a_hopeless_split_says_so_meanwhile(caplog, monkeypatch):
    monkeypatch.setattr("fedpara.data.partition.PATIENCE_S", 0.0)
    labels = torch.arange(5000) % 10
    with caplog.at_level("INFO"), pytest.raises(ValueError, match="1000 draws left a client below 10 examples"):
        Dirichlet(alpha=0.01)(Examples(torch.zeros(5000, 1), labels), num_clients=100, seed=0)
    (line,) = [record.message for record in caplog.records]
    assert line == "partition: 1 draws so far did not give every client 10 examples; at most 1000 are tried"


def test_tables_show_names_as_they_are(shell, tmp_path):
    from fedpara.app import status

    folder = tmp_path / "[/red]" / "a[bold]"
    assert shell(*TINY, f"hydra.run.dir='{folder}'")[0] == 0
    shown = Console(width=200, file=io.StringIO())
    shown.print(status.status([tmp_path]))
    assert "[/red]/a[bold]" in shown.file.getvalue()
