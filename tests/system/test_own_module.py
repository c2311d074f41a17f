"""A LightningModule that is not ours, plugged in by a configuration: its own loss, metrics, optimizer and schedule."""

import csv
import json
import re
import sys

import pytest
import torch
from pytorch_lightning import LightningModule
from safetensors.torch import load_file
from torch import nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError

from fedpara.app import cli, evaluation, report, status
from fedpara.app.build import build
from fedpara.app.composition import compose
from fedpara.app.errors import ConfigurationError
from fedpara.app.run import run
from fedpara.data import DataSet, Examples
from fedpara.models.contract import optimizer_of, read_optimizer, require_module
from fedpara.runs import Run
from helpers.federations import same

NETWORK = "{_target_: fedpara.models.MLP, _convert_: all, widths: [4, 16, 16, 1]}"
MODEL = f"""
_target_: test_own_module.Regression
lr: 0.05
network: {NETWORK}
keep_dense: []
head: ["layers.5.*"]
"""
DATA = """
defaults: [base]
dataset: {_target_: test_own_module.waves, _partial_: true}
num_classes: null
in_channels: null
"""
OPTIONS = (
    "trainer=cpu", "trainer.max_epochs=2", "logger=csv", "federation.num_clients=4", "federation.clients_per_round=2",
    "federation.num_rounds=4", "data.batch_size=16", "factors.gamma=1.0", "callbacks.partition_picture=null",
)  # fmt: skip


def waves(num_train=160, num_test=64):
    """Numbers to be predicted from four others."""
    generator = torch.Generator().manual_seed(0)

    def draw(size):
        inputs = torch.rand(size, 4, generator=generator) * 2 - 1
        return Examples(inputs, inputs.sin().sum(1, keepdim=True))

    return DataSet("waves", draw(num_train), draw(num_test), None, torch.Tensor.float)


class Regression(LightningModule):
    headline, higher_is_better = "mae", False
    learning_rate_factor = 1.0

    def __init__(self, network, lr=0.05):
        super().__init__()
        self.network, self.lr = network, lr
        self.mse, self.mae = MeanSquaredError(), MeanAbsoluteError()

    def training_step(self, batch, batch_index):
        inputs, targets = batch
        return {"loss": nn.functional.huber_loss(self.network(inputs), targets)}

    def test_step(self, batch, batch_index):
        inputs, targets = batch
        outputs = self.network(inputs)
        self.mse.update(outputs, targets)
        self.mae.update(outputs, targets)
        self.log_dict({"mse": self.mse, "mae": self.mae})

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr * self.learning_rate_factor)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]


def in_configs(tmp_path):
    for group, text in (("model", MODEL), ("data", DATA)):
        (tmp_path / "configs" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs" / group / "mine.yaml").write_text(text)
    return tmp_path / "configs"


def composed(folder, *overrides):
    """As the yaml files say it, without another process."""
    own = [f"++model._target_={__name__}.Regression", "++model.lr=0.05", f"model.network={NETWORK}", "model.head=[]"]
    own += ["~model.optimizer", "data.num_classes=null", "data.in_channels=null"]
    own += [f"data.dataset._target_={__name__}.waves"]
    data = ["data=mnist_small", "model=mlp", "model.keep_dense=[]"]
    return compose([*data, *OPTIONS, *own, "logger=none", f"paths.output_dir={folder}", *overrides], folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The first half of a run as a user types it, whose configurations and class are outside of this package."""
    folder = tmp_path_factory.mktemp("own")
    typed = ["train.py", f"--config-dir={in_configs(folder)}", "model=mine", "data=mine", *OPTIONS]
    typed += ["federation.num_rounds=2", "federation.evaluate_personal=true", f"hydra.run.dir={folder / 'run'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", typed)
        cli.main()
    return folder / "run"


def test_it_is_trained_tested_and_judged_by_its_own_metric(trained):
    assert re.search(r"test mae 0\.\d+ after 2 rounds", (trained / "train.log").read_text())
    with (trained / "metrics.csv").open() as stream:
        header, *rows = csv.reader(stream)
    assert not [name for name in header if "acc" in name]
    assert header[:4] == ["round", "test/mae", "test/mse", "train/loss"]
    assert {"personal/mae_mean", "personal/mae_p90"} <= set(header)
    summary = json.loads((trained / "summary.json").read_text())
    last = [float(row[header.index("test/mae")]) for row in rows]
    assert summary["metrics"]["best"]["test/mae"] == min(last)
    assert summary["headline"] == {"name": "mae", "higher_is_better": False}


def test_it_goes_on_is_evaluated_exported_reported_and_watched(trained, tmp_path, monkeypatch, capsys):
    folder = trained
    configs = f"--config-dir={folder.parent / 'configs'}"
    for program, main, arguments in (
        ("train.py", cli.main, [configs, f"resume={folder}", "federation.num_rounds=4", f"trusted=[{__name__}.*]"]),
        ("eval.py", evaluation.main, [f"run={folder}", "export=dense", f"trusted=[{__name__}.*]"]),
        ("status.py", status.main, [str(folder)]),
        ("report.py", report.main, [str(folder), f"output={tmp_path / 'report'}"]),
    ):
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        main()
        shown = capsys.readouterr()
        assert "acc" not in (shown.out + shown.err).replace("accelerator", ""), program
        if program == "eval.py":
            printed = dict(line.split(": ") for line in shown.out.splitlines() if ": " in line)
    row = Run(folder).rows[-1]
    assert row["round"] == 4
    for name in ("test/mae", "test/mse", "personal/mae_mean"):
        assert float(printed[name]) == pytest.approx(row[name], rel=1e-5)
    assert row["test/mae"] < Run(folder).rows[0]["test/mae"]
    assert len(load_file(folder / "model.safetensors")) > 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "mae" in page
    assert "accuracy" not in page


def test_a_resume_without_the_folder_of_its_configurations_says_what_to_type(trained, monkeypatch, capsys):
    """It is not taken by itself: a stranger's run folder could name one."""
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={trained}", "federation.num_rounds=8"])
    with pytest.raises(SystemExit):
        cli.main()
    error = capsys.readouterr().err
    assert error.startswith("error: Could not find 'data/mine'")
    flag = f"--config-dir={trained.parent / 'configs'}"
    assert error.endswith(f"; the run was started with {flag}: if you trust it, type it in front of resume=\n")
    monkeypatch.setattr(sys, "argv", ["train.py", flag, f"resume={trained}", "algorithm=unknown"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "was started with" not in capsys.readouterr().err


class Undefined(Regression):
    """Its headline is a number only from its third test on, another metric never is."""

    tested = 0

    def on_test_epoch_end(self):
        Undefined.tested += 1
        self.log("r2", float("nan"))
        if Undefined.tested < 3:
            self.log("mae", float("nan"))

    def test_step(self, batch, batch_index):
        inputs, targets = batch
        if Undefined.tested >= 2:
            self.log("mae", (self.network(inputs) - targets).abs().mean())


def test_a_metric_that_no_round_measures_as_a_number_is_warned_of_once(tmp_path):
    run(composed(tmp_path, f"model._target_={__name__}.Undefined"))
    log = (tmp_path / "train.log").read_text()
    warned = re.findall(r"round (\d+): (\S+) is NaN, as in every round so far", log)
    assert sorted(warned) == [("1", "test/mae"), ("1", "test/r2")]
    assert Run(tmp_path).last("test/mae") > 0


@pytest.mark.slow
def test_every_executor_trains_it_alike_or_says_in_one_line_why_not(tmp_path):
    run(composed(tmp_path / "serial"))
    expected = load_file(tmp_path / "serial" / "checkpoint.safetensors")
    run(composed(tmp_path / "processes", "executor=processes"))
    assert same(load_file(tmp_path / "processes" / "checkpoint.safetensors"), expected)
    build(composed(tmp_path / "auto", "executor=auto"))
    for typed in ("executor=vectorized", "executor.whole_epochs=true"):
        with pytest.raises(ConfigurationError, match=r"Regression has its own \w+: take executor"):
            build(composed(tmp_path / "refused", typed))


class Forgetful(Regression):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class TwoOptimizers(Regression):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


class WithoutTest(Regression):
    test_step = LightningModule.test_step


class Outside(Regression):
    def __init__(self, network):
        super().__init__(network)
        self.scale = nn.Parameter(torch.ones(1))


class BySteps(Regression):
    """Its schedule is as long as Lightning says that the training will be, as in Lightning's documentation."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr * self.learning_rate_factor)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr * self.learning_rate_factor, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_end(self):
        assert self.trainer.estimated_stepping_batches == self.trainer.global_step


def test_a_schedule_may_be_as_long_as_the_training(tmp_path):
    assert run(composed(tmp_path, f"model._target_={__name__}.BySteps", "federation.num_rounds=1")) > 0


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Forgetful", "must multiply its learning rates by self.learning_rate_factor"),
        ("TwoOptimizers", "gives 2 optimizers: must be 1"),
        ("WithoutTest", "lacks test_step"),
        ("Outside", r"scale: must be in Outside\.network"),
    ],
)
def test_a_module_that_breaks_the_contract_is_one_line_before_training(tmp_path, name, line):
    lr = ["~model.lr"] if name == "Outside" else []
    with pytest.raises(ConfigurationError, match=line):
        build(composed(tmp_path, f"model._target_={__name__}.{name}", *lr))


def test_an_algorithm_that_its_optimizer_does_not_suit_names_the_module(tmp_path):
    """There is no `model.optimizer` that the user could change."""
    with pytest.raises(ConfigurationError, match=r"^model: Adam and SCAFFOLD"):
        build(composed(tmp_path, "algorithm=scaffold"))


def test_the_forms_of_configure_optimizers():
    """Those of Lightning's documentation, but several optimizers."""
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    monitored = {"scheduler": schedule, "interval": "step"}
    forms = [optimizer, [optimizer], {"optimizer": optimizer}]
    scheduled = [
        ([optimizer], [schedule]),
        ([optimizer], [monitored]),
        [{"optimizer": optimizer, "lr_scheduler": schedule}],
    ]
    for form in [*forms, *scheduled]:
        assert read_optimizer(form) is optimizer
    for form in (None, [], 3):
        with pytest.raises(ValueError, match="configure_optimizers gives"):
            read_optimizer(form)


def test_asking_a_module_for_its_optimizer_leaves_it_as_it_was():
    module = Regression(nn.Linear(4, 1))
    module.learning_rate_factor = 0.3
    assert isinstance(optimizer_of(require_module(module), None), torch.optim.Adam)
    assert module.learning_rate_factor == 0.3
