"""What a person types: `src/train.py` and `src/eval.py` in this process, as one would in a shell."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import zip_longest
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from fedpara.app import evaluation, sweep, sweep_table
from fedpara.app import report as reporting
from fedpara.app import run as program_run
from fedpara.app import status as stand
from fedpara.federation import FederationCallback
from fedpara.files import reserve, write_atomically
from fedpara.runs import Run
from helpers import ROOT
from helpers.cases import thinned
from helpers.configured import choices_of
from helpers.files import write_cifar
from helpers.runs import of_wandb, rows
from helpers.shell import SMALL, Forked, newest, states


def test_where_something_is_personal_runs_are_judged_by_the_clients_own_models(shell, tmp_path, monkeypatch):
    """The shared part's test accuracy has an untrained personal part: no sweeper, line or table is to go by it."""
    returned, trained = [], program_run.train
    monkeypatch.setattr(program_run, "train", lambda *given: returned.append(trained(*given)) or returned[-1])
    status, _, out = shell(*SMALL, "sharing=fedper")
    assert status == 0
    folder = newest(tmp_path)
    personal = [float(row["personal/acc_mean"]) for row in rows(folder)]
    summary = json.loads((folder / "summary.json").read_text())
    assert returned == [personal[-1]] != [float(rows(folder)[-1]["test/acc"])]
    finished = OmegaConf.load(folder / "config.yaml")
    assert sweep.job(finished, OmegaConf.create({"overrides": {"task": SMALL}})) == personal[-1]
    assert summary["metrics"]["best"]["personal/acc_mean"] == max(personal)
    assert f"personal accuracy {100 * personal[-1]:.2f} % after 2 rounds" in out
    assert f"acc {100 * personal[-1]:.2f} %" in out
    made = sweep_table.table([Run(folder)], "t")
    assert [column.header for column in made.columns][1] == "personal accuracy"
    shown = [[f"{100 * value:.2f} %"] for value in (personal[-1], max(personal))]
    assert [list(column.cells) for column in made.columns[1:3]] == shown
    status, _, out = shell(str(folder), program=stand)
    assert f"{100 * personal[-1]:.2f} %" in out
    shell(str(folder), program=reporting)
    assert f">{100 * personal[-1]:.1f}<" in (folder / "report" / "report.html").read_text()


def test_a_run_leaves_its_folder_and_can_be_tested_and_resumed(shell, tmp_path, monkeypatch):
    assert shell(*SMALL)[0] == 0
    folder = newest(tmp_path)
    assert {"config.yaml", "metrics.csv", "summary.json", "checkpoint.safetensors"} <= {
        p.name for p in folder.iterdir()
    }
    assert "${" not in (folder / "config.yaml").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["state"] == "finished"
    sizes = summary["parameters"]
    assert sizes["shared"] == sizes["factorized"] < sizes["dense"]
    assert summary["bytes_per_round"] == {"up": 2 * 4 * sizes["shared"], "down": 2 * 4 * sizes["shared"]}

    status, _, out = shell(f"run={folder}", program=evaluation)
    assert status == 0
    assert f"test/acc: {rows(folder)[-1]['test/acc']}\n" in out
    assert f"test/loss: {rows(folder)[-1]['test/loss']}\n" in out
    assert shell("run=nowhere", program=evaluation)[:2] == (
        2, "error: run=nowhere: not a run folder, it holds no config.yaml\n",
    )  # fmt: skip

    assert shell(f"resume={folder}", "federation.num_rounds=3")[0] == 0
    assert [row["round"] for row in rows(folder)] == ["1", "2", "3"]
    assert newest(tmp_path) == folder
    status, error, _ = shell(f"resume={folder}", "seed=7")
    assert status == 2
    assert error == f"error: resume={folder}: the run cannot be resumed with another seed (0 then, 7 now)\n"
    status, error, _ = shell(f"resume={folder}", "algorithm=fedadam")
    assert error.startswith(
        f"error: resume={folder}: the run cannot be resumed with another algorithm._target_ ('fedpara."
    )
    assert error.endswith(", algorithm.server_lr, algorithm.tau, model.optimizer.lr\n")
    status, error, _ = shell(*SMALL, f"hydra.run.dir={folder}")
    assert (status, error) == (
        2,
        f"error: paths.output_dir={folder}: holds a run of 3 rounds; resume it with resume={folder}, "
        "or choose another folder\n",
    )
    status, error, _ = shell("--config-dir", str(tmp_path), f"resume={folder}", "federation.num_rounds=4")
    assert status == 0, error  # the refusal has spoilt nothing

    monkeypatch.setenv("WANDB_MODE", "offline")
    status, error, out = shell(f"resume={folder}", "logger=wandb")
    assert status == 0, error
    assert "round 4/4" not in out
    assert not (tmp_path / "logs" / "wandb").exists()  # no run of W&B for a run that does nothing


@pytest.mark.slow
def test_a_damaged_run_folder_is_one_line(shell, tmp_path):
    folder = tmp_path / "run"
    assert shell(*SMALL, "algorithm=scaffold", "federation.clients_per_round=4", f"hydra.run.dir={folder}")[0] == 0
    for name, line in {
        "clients/memories/*": f"{folder}/clients/memories/.*: cannot be used, it is damaged",
        "checkpoint.safetensors": f"{folder}/checkpoint.safetensors: cannot be used, it is damaged",
        "metrics.csv": f"{folder}/metrics.csv: not a table of rounds, or damaged",
        "config.yaml": f"resume={folder}: its config.yaml cannot be read",
        "overrides.yaml": f"resume={folder}: its overrides.yaml cannot be read",
    }.items():
        whole = {path: path.read_bytes() for path in folder.glob(name)}
        for path, content in whole.items():
            path.write_bytes(b"\xff" + content[1:-9] + b"\n")
        status, error, _ = shell(f"resume={folder}", "federation.num_rounds=3")
        assert (status, error.count("\n")) == (2, 1), error
        assert re.match(f"error: {line}", error), error
        for path, content in whole.items():
            path.write_bytes(content)
    assert shell(f"resume={folder}", "federation.num_rounds=3")[0] == 0


@pytest.mark.slow
def test_a_run_killed_before_its_first_round_starts_anew(shell, tmp_path):
    folder = tmp_path / "run"
    assert shell(*SMALL, f"hydra.run.dir={folder}")[0] == 0
    expected = rows(folder)
    (folder / "checkpoint.safetensors").unlink()
    assert shell(f"resume={folder}")[1] == (
        f"error: {folder}/checkpoint.safetensors: no checkpoint there; give the folder of a run that finished a round\n"
    )
    (folder / "metrics.csv").write_text((folder / "metrics.csv").read_text().splitlines()[0])
    assert shell(f"resume={folder}")[0] == 0
    assert [row["test/loss"] for row in rows(folder)] == [row["test/loss"] for row in expected]


def test_the_same_seed_gives_the_same_rows(shell, tmp_path):
    for _ in range(2):
        assert shell(*SMALL, "seed=3")[0] == 0
    first, second = (rows(folder) for folder in (tmp_path / "logs" / "train" / "runs").iterdir())
    for row in first + second:
        for name in [name for name in row if name.startswith(("time/", "cost/round"))]:
            del row[name]
    assert first == second


class Accident(FederationCallback):
    """After the first round seed 1 is killed, as by a machine short of memory, and seed 2 fails."""

    def on_round_end(self, federation, record):
        if record.round == 1 and federation.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if record.round == 1 and federation.seed == 2:
            raise FloatingPointError("made to fail")


PARALLEL = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], pytest.param(PARALLEL, marks=pytest.mark.slow)], ids=["forked", "joblib"])
def test_a_sweep_goes_on_after_accidents_and_again_where_it_stopped(shell, tmp_path, monkeypatch, launcher):
    """In parallel each job is a process of its own, as it is for a person: imports of torch are most of that time."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT / 'tests'}:{ROOT / 'tests' / 'system'}")
    if not launcher:
        monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": Forked}))
    command = ["-m", *SMALL, "+callbacks.z._target_=test_cli.Accident", "seed=1,2"]
    status, error, out = shell(*command, *launcher)
    assert status == 1
    assert error.splitlines()[-1] == "error: not finished: seed=1, seed=2"
    assert "seed=1: killed by SIGKILL" in out
    assert "seed=2: made to fail" in out
    assert states(out) == {"1": "interrupted", "2": "failed"}
    folder = newest(tmp_path, "multiruns")
    assert "FloatingPointError: made to fail" in (folder / "seed=2" / "train.log").read_text()
    assert "seed=2: failed (exit status 1)" in (folder / "seed=2" / "train.log").read_text()

    status, error, out = shell(*command)  # the launcher is not part of what is swept
    assert (status, error) == (0, "")
    assert "seed=1: resumes after 1 round\n" in out
    assert states(out) == {"1": "finished", "2": "finished"}
    assert all([row["round"] for row in rows(folder / f"seed={seed}")] == ["1", "2"] for seed in (1, 2))

    before = (folder / "seed=1" / "summary.json").stat().st_mtime_ns
    status, _, out = shell(*command)
    assert out.count("skipped, it is already finished") == 2
    assert (folder / "seed=1" / "summary.json").stat().st_mtime_ns == before


@pytest.mark.slow  # a process of its own
def test_a_job_of_a_sweep_goes_on_alone_and_not_under_another_configuration(shell, tmp_path):
    assert shell("-m", *SMALL, "seed=1")[0] == 0
    folder = newest(tmp_path, "multiruns") / "job"
    status, error, _ = shell("-m", *SMALL, "seed=1", f"hydra.sweep.dir={folder.parent}", "data.batch_size=8")
    assert status == 2
    line = f"error: resume={folder}: the run cannot be resumed with another data.batch_size (16 then, 8 now)"
    assert error.splitlines()[-1] == f"{line}; give the sweep another folder, hydra.sweep.dir=..."

    assert shell(f"resume={folder}", "federation.num_rounds=3")[0] == 0
    assert [row["round"] for row in rows(folder)] == ["1", "2", "3"]
    status, error, _ = shell("-m", f"resume={folder}", "seed=1,2")
    assert (status, error) == (2, f"error: resume={folder}: resumes one run; leave out -m\n")


STAND_IN = """
import json, os, pathlib, sys
(folder,) = [a.partition("=")[2].strip("'") for a in sys.argv if a.startswith("hydra.run.dir=")]
seen = {"arguments": sys.argv[1:], "device": os.environ["CUDA_VISIBLE_DEVICES"]}
pathlib.Path(folder, "seen.json").write_text(json.dumps(seen))
"""


@pytest.mark.slow
def test_what_is_typed_for_hydra_reaches_every_job_and_gpus_go_in_turn(shell, tmp_path, monkeypatch):
    """Without a GPU: an `nvidia-smi` that lists two."""
    for path, text in {
        "bin/nvidia-smi": "#!/bin/sh\necho GPU 0: one\necho GPU 1: other",
        "job.py": STAND_IN,
        "own/main.yaml": "defaults: [train, _self_]\nseed: 5",
        "own/link/mine.yaml": "defaults: [fp32]",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sweep, "TRAIN", (str(tmp_path / "job.py"),))
    flags = ["--config-dir=own", "--config-name=main", "hydra.verbose=[train]", "+hydra.job.env_set.A=b"]
    assert shell("-m", *flags, "link=mine", "factorization.gamma=0.1,0.2,0.3")[0] == 1
    jobs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("logs/train/multiruns/*/*/seen.json"))]
    assert [job["device"] for job in jobs] == ["0", "1", "0"]
    status, error, out = shell(*jobs[1]["arguments"], "--cfg", "all")
    assert status == 0, error
    composed = OmegaConf.create(out)
    assert (composed.seed, composed.factorization.gamma, composed.hydra.mode) == (5, 0.2, "RUN")
    assert (composed.hydra.verbose, composed.hydra.job.env_set) == (["train"], {"A": "b"})


@pytest.mark.slow
def test_a_run_that_is_at_work_is_left_alone(shell, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with reserve(folder):
        assert Run(folder).state == "running"
        status, error, _ = shell(*SMALL, f"hydra.run.dir={folder}")
    assert (status, error) == (2, f"error: {folder}: another process is training in this run folder\n")


@pytest.mark.parametrize(
    ("override", "line"),
    [("sharing=pfedpara", "sharing.personal='"), ("data=cifar10", "{}/data/cifar-10-b")],
)
def test_a_job_that_fails_before_its_first_round_says_so_in_its_folder_and_in_wandb(
    shell, tmp_path, monkeypatch, override, line
):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "sweep" / override
    assert shell(*SMALL, "logger=wandb", override, f"hydra.run.dir='{folder}'", "hydra.job.num=0")[0] == 2
    run, line = Run(folder), line.format(tmp_path)
    assert run.state == "failed"
    assert run.summary["error"].startswith(line)
    assert f"ConfigurationError: {line}" in (folder / "train.log").read_text()
    assert {path.name for path in folder.iterdir()} == {".hydra", ".lock", "summary.json", "train.log"}
    records, summary = of_wandb(tmp_path / "logs", f"sweep-{override.replace('=', '-')}")
    assert records[-1]["exit"]["exit_code"] == 1
    (made,) = [record["run"] for record in records if record["type"] == "run"]
    assert (made["display_name"], made["run_group"]) == (override, "sweep")
    assert summary["config"]["federation"]["num_rounds"] == 2


def test_without_a_configuration_there_is_no_run_in_wandb(shell, tmp_path):
    for override in ("link=none", "seed=${nowhere}", "+seed=1"):
        assert shell(*SMALL, "logger=wandb", override)[0] == 2
    assert not list(tmp_path.glob("logs/wandb"))


def test_a_wrong_value_is_recorded_in_the_folder_alone(shell, tmp_path):
    """It is refused before torch and W&B are imported."""
    assert shell(*SMALL, "logger=wandb", "seed=-1", f"hydra.run.dir={tmp_path}/run")[0] == 2
    assert Run(tmp_path / "run").state == "failed"
    assert Run(tmp_path / "run").summary["error"].startswith("seed=-1: must")
    assert not list(tmp_path.glob("logs/wandb"))


BAD = [
    ("gamma=3", "gamma: no such key; allowed in the configuration: "),
    ("factorization.gama=0.3", "factorization.gama: no such key; did you mean factorization.gamma?; allowed in "),
    ("+factorization.gama=0.3", "factorization.gama: no such key"),
    ("experiment=fedpara_cifar", "Could not find 'experiment/fedpara_cifar' Available options in 'experiment': "),
    (
        "hydra/sweeper=nevergrad",
        "Could not find 'hydra/sweeper/nevergrad' Available options in 'hydra/sweeper': basic "
        "(is hydra-nevergrad-sweeper installed?)",
    ),
    ("trainer._target_=null", "trainer._target_=None: must name a Trainer, such as pytorch_lightning.Trainer"),
    ("factorization.gamma=-0.1", "factorization.gamma=-0.1: Input should be greater than or equal to 0"),
    ("factorization.gamma=much", "factorization.gamma='much': Input should be a valid number"),
    ("factorization.conv=prop9", "factorization.conv='prop9': Input should be 'tucker' or 'reshape'"),
    ("factorization.jacobian_correction=-1", "factorization.jacobian_correction=-1: Input should be greater than or"),
    (
        "factorization.layers={conv9:{rank:2}}",
        "factorization: pattern='conv9': matches no layer; layers are features.conv1_1",
    ),
    (
        "factorization.initialization=fitted",
        "factorization.initialization=fitted: needs weights to start from, pretrained",
    ),
    (
        "link=fedpaq4 link.up_codec.bits=2",
        "link.error_feedback=True: must be false with up_codec.bits=2, whose error can",
    ),
    ("factorization.initialization=zero", "factorization.initialization='zero': Input should be 'variance', "),
    ("model.keep_dense=[clasifier]", "factorization: pattern='clasifier': matches no layer"),
    ("model.network.groups=3", "model.network.groups=3: must divide every width"),
    ("model.optimizer.lr=-1", "model.optimizer.lr=-1: must be a number, 0 or more"),
    ("model.optimizer.lr=nan", "model.optimizer.lr=nan: must be a number, 0 or more"),
    (
        "+model.optimizer.momentum=x",
        "model.optimizer: '<' not supported between instances of 'str' and 'float'; given ",
    ),
    ("model.head=2", "model.head=2: must be a list of name patterns"),
    ("factorization.num_dense=1.5", "factorization.num_dense=1.5: Input should be a valid integer"),
    ("data.transform=flip", "data.transform='flip': Input should be an instance of Transform"),
    ("executor.matmul_precision=low", "executor.matmul_precision='low': Input should be 'highest', 'high' or 'medium'"),
    ("link.up_codec=8", "link.up_codec=8: Input should be an instance of Codec"),
    ("callbacks.progress={a:1}", "callbacks.progress.a: no such key"),
    ("~factorization._target_", "factorization._target_: must be given; it names a class or function"),
    ("~data.dataset._target_", "data.dataset._target_: must be given"),
    ("~callbacks.checkpoint._target_", "callbacks.checkpoint._target_: must be given"),
    ("+callbacks.mine={_target_:builtins.dict}", "callbacks.mine: must be a FederationCallback, not a dict"),
    ("logger=[]", "logger=[]: must be one of csv, "),
    ("callbacks=[]", "callbacks=[]: must be one of audited, "),
    ("+executor.chunk=2", "executor.chunk: no such key"),
    ("~link.up_codec", "link.up_codec: must be given"),
    ("data.dataset=[1]", "data.dataset=[1]: must be of the kind it is in configs/ (Cannot merge DictConfig with ListC"),
    ("algorithm=fedadam algorithm.tau=1e30", "algorithm.tau=1e+30: Input should be less than or equal to 1"),
    ("federation.clients_per_round=5", "federation.clients_per_round=5: must be 1 to num_clients (4)"),
    ("federation.num_clients=100", "federation.num_clients=100: needs at least 100 training examples (1 a client)"),
    ("federation.num_rounds=0", "federation.num_rounds=0: Input should be greater than or equal to 1"),
    ("federation.num_rounds=many", "federation.num_rounds='many': Input should be a valid integer"),
    ("federation.lr_decay=0", "federation.lr_decay=0: Input should be greater than 0"),
    ("federation.min_clients=3", "federation.min_clients=3: must be 1 to clients_per_round (2)"),
    ("federation.retries=-1", "federation.retries=-1: Input should be greater than or equal to 0"),
    ("faults.dropout=1.5", "faults.dropout=1.5: Input should be less than or equal to 1"),
    (
        "faults=flaky faults.dropout=1",
        "faults.dropout=1.0: the shares of all faults must sum to at most 1, they sum to 1.1",
    ),
    ("data.batch_size=0", "data.batch_size=0: Input should be greater than or equal to 1"),
    ("data.max_train=-1", "data.max_train=-1: Input should be greater than or equal to 1"),
    ("data.num_classes=11", "data.num_classes=11: mnist_small has 10"),
    ("trainer.max_epochs=-1", "trainer.max_epochs=-1: must be a whole number of local epochs, 1 or more"),
    ("trainer.max_epochs=ten", "trainer.max_epochs='ten': must be a whole"),
    ("trainer.precision=31", "trainer: Precision 31 is invalid. Allowed precision values"),
    ("trainer.accelerator=abacus", "trainer: You selected an invalid accelerator name"),
    ("+trainer.limit_train_batches=1", "trainer.limit_train_batches=1: must be absent"),
    ("trainer.devices=2", "trainer.devices=2: must be 1"),
    ("executor=processes executor.workers=0", "executor.workers=0: Input should be greater than or equal to 1"),
    ("executor=processes executor@executor.inner=processes", "executor.inner=processes: must train in its own process"),
    ("executor=processes data.num_workers=2", "data.num_workers=2: must be 0 under executor=processes"),
    ("link.up_codec.dtype=int3", "link.up_codec.dtype='int3': Input should be 'float32', 'float16' or 'bfloat16'"),
    ("sharing.personal=[w9]", "sharing.personal='w9': matches no parameter or buffer"),
    ("callbacks.checkpoint.every=0", "callbacks.checkpoint.every=0: Input should be greater than or equal to 1"),
    ("seed=-1", "seed=-1: must be a whole number, 0 to 2^63 - 1"),
    ("seed=x", "seed=x: must be a whole number, 0 to 2^63 - 1"),
    ("resume=nowhere", "resume=nowhere: not a run folder, it holds no config.yaml"),
    ("partition=dirichlet partition.alpha=0", "partition.alpha=0: Input should be greater than 0"),
    ("partition=shards", "partition.classes_per_client=2: 4 clients would leave out some of the 10 classes; must be 3"),
    (
        "model=mlp model.network.widths=[100,10]",
        "model.network: MLP cannot take inputs of mnist_small, (1, 28, 28)",
    ),
    ("model=char_lstm", "model.network: CharLSTM cannot take inputs of mnist_small, (1, 28, 28)"),
    ("model=mlp model.network.widths=[784,9]", "model.network: MLP gives (9,), not a logit for each of the classes"),
    ("sharing.personal_rate=4", "sharing.personal_rate=4.0: must be 1 where nothing is personal"),
    (
        "model=mlp method=pfedpara sharing.personal_rate=4 factors.jacobian_correction=1",
        "sharing.personal_rate=4: must be 1 with factorization.jacobian_correction, whose equation has one rate",
    ),
    (
        "factors.jacobian_correction=1 model.optimizer._target_=torch.optim.Adam",
        "factorization.jacobian_correction=1: must be 0 with Adam, for it scales gradients of SGD",
    ),
    (
        "factorization.step=1 model.optimizer._target_=torch.optim.Adam",
        "factorization: step must be null with Adam, for it scales gradients of SGD; or take torch.optim.SGD",
    ),
    ("sharing=fedbn model=mlp", "sharing.personal='*norm*': matches no parameter or buffer of the model"),
    ("factorization.num_dense=9", "factorization.num_dense=9: must be 0 to 3, one less than the number of layers"),
    ("partition=natural", "partition=natural: the data set names no owners; take femnist or shakespeare"),
    ("data.local_fraction=0", "data.local_fraction=0: Input should be greater than 0"),
    ("algorithm=-1", "algorithm=-1: must be one of fedadagrad, fedadam, "),
    ("algorithm._target_=nowhere.Algorithm", "algorithm._target_='nowhere.Algorithm': must name a class or function, "),
    ("data.dataset=-1", "data.dataset=-1: must be a group of keys, as in configs/data/"),
    ("callbacks.checkpoint=-1", "callbacks.checkpoint=-1: must be a group of keys, as in configs/callbacks/"),
    (
        "callbacks.checkpoint.folder=nowhere",
        "callbacks.checkpoint.folder='/",  # absolute, and no directory
    ),
    ("callbacks.checkpoint.memory_gb=-1", "callbacks.checkpoint.memory_gb=-1: Input should be greater than or equal"),
    ("algorithm=scaffold model.optimizer._target_=torch.optim.Adam", "model.optimizer: Adam and SCAFFOLD, whose"),
    ("algorithm=scaffold +model.optimizer.momentum=0.9", "model.optimizer: SGD with momentum and SCAFFOLD, whose"),
    (
        "sharing=pfedpara",
        "sharing.personal='*.parametrizations.*.0.[xyt]2': matches no parameter or buffer of the mode",
    ),
    (
        "sharing.personal=[*.y,*.t]",
        "sharing: features.conv1_1.parametrizations.weight.0 would be split, y, t personal; take factorization=pf",
    ),
    ("sharing=pfedpara factorization=dense", "sharing.personal='*.parametrizations.*.0.[xyt]2': matches no param"),
    ("trainer.precision=16-mixed trainer=cpu", "trainer.precision=16-mixed: needs a GPU; on a CPU take bf16-mixed or"),
    ("trainer.precision=16 trainer=cpu", "trainer.precision=16: needs a GPU; on a CPU take bf16-mixed or 32-true"),
    ("partition=dirichlet federation.num_clients=7", "federation.num_clients=7: needs at least 70 training examples"),
    ("federation.num_rounds=???", "federation.num_rounds: must be given"),
    ("data=base", "data.dataset: must be given"),
    ("callbacks.checkpoint=???", "callbacks.checkpoint: must be given"),
    ("model.head=['???']", "model.head: must be given"),
    ("data.class_range=[]", "data.class_range=[]: must have more items"),
    ("data.class_range=[0]", "data.class_range=[0]: must have more items"),
    (
        "partition=shards partition.classes_per_client=3 federation.evaluate_personal=true data.max_test=1",
        "data: none of the 1 test examples is of a client's classes, ",
    ),
    ("trainer.max_epochs=true", "trainer.max_epochs=True: must be a number"),
    ("factorization.num_dense=true", "factorization.num_dense=True: must be a number"),
    ("model.optimizer.lr=true", "model.optimizer.lr=True: must be a number, 0 or more"),
    ("data.class_range=true", "data.class_range=True: must be a number"),
]


@pytest.mark.parametrize(("override", "line"), thinned(BAD, 4), ids=[override for override, _ in BAD])
def test_bad_input_is_one_line_and_status_2(shell, override, line):
    small = [option for option in SMALL if "model=" not in override or not option.startswith("model.")]
    status, error, _ = shell(*small, *override.split(" "))
    assert status == 2
    assert error.count("\n") == 1, error
    assert error.startswith(f"error: {line}"), error


def test_missing_data(shell, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    status, error, _ = shell("experiment=fedpara_cifar100", "logger=none", *NARROW["vgg16"])
    assert status == 2
    (line,) = [line for line in error.splitlines() if line.startswith("error")]
    assert line.startswith(
        f"error: {tmp_path}/data/cifar-100-python: missing train, test, and https://www.cs.toronto.edu"
    )
    assert line.endswith("put the files there or set paths.data_dir (or DATA_DIR)")
    assert "Traceback" not in error


def test_corrupt_data(shell, tmp_path):
    write_cifar(tmp_path / "data" / "cifar-100-python")
    status, error, _ = shell("experiment=fedpara_cifar100", "logger=none", *NARROW["vgg16"])
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith(f"error: {tmp_path}/data/cifar-100-python/train: MD5 is ")


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/full"])
def test_an_output_folder_that_cannot_be_written(shell, folder):
    status, error, _ = shell(*SMALL, f"hydra.run.dir={folder}/run")
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith("error: paths.output_dir: [Errno ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])  # EFBIG: `ulimit -f`, as schedulers set it
def test_a_disk_that_fills_up_ends_in_one_line(shell, tmp_path, monkeypatch, number):
    written = []

    def full(path, *rest):
        if len(written) == 1:  # after the checkpoint of the start
            raise OSError(number, "No room")
        written.append(write_atomically(path, *rest))

    monkeypatch.setattr("fedpara.storage.write_atomically", full)
    status, error, _ = shell(*SMALL)
    assert status == 2
    line = f"[Errno {number}] No room; must be a writable folder on a disk with space left"
    assert error == f"error: paths.output_dir: {line}\n"
    assert len(rows(newest(tmp_path))) == 1  # the round that finished is kept


def test_a_diverged_run_says_so(shell, tmp_path):
    status, error, _ = shell(*SMALL, "model.optimizer.lr=1e30")
    assert status == 1
    assert "error: client" in error
    assert "try a smaller model.optimizer.lr" in error
    assert json.loads((newest(tmp_path) / "summary.json").read_text())["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_can_go_on(tmp_path, sign):
    environment = os.environ | {"PROJECT_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    flag = f"--config-dir={tmp_path}"
    command = [sys.executable, ROOT / "src" / "train.py", flag, *SMALL, "federation.num_rounds=100000", "logger=wandb"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=-1, stderr=-1)
    runs = tmp_path / "logs" / "train" / "runs"
    deadline = time.monotonic() + 60
    while not any(len(rows(folder)) > 1 for folder in (runs.iterdir() if runs.is_dir() else []) if folder.is_dir()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(sign)
    out, error = process.communicate(timeout=15)
    (folder,) = runs.iterdir()
    assert process.returncode == 130
    assert error.strip().splitlines()[-1] == "error: interrupted"
    assert f"to resume: python {ROOT / 'src' / 'train.py'} {flag} resume={folder.relative_to(tmp_path)}\n" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["state"] == "interrupted"
    assert len(rows(folder)) == summary["rounds"]
    records, _ = of_wandb(tmp_path / "logs", folder.name)
    assert records[-1]["exit"]["exit_code"] == 255  # W&B's own for an interruption
    logged = [record["history"] for record in records if record["type"] == "history"]
    assert len(logged) == summary["rounds"]


EXPERIMENTS = sorted(
    str(path.relative_to(ROOT / "configs" / "experiment").with_suffix(""))
    for path in (ROOT / "configs" / "experiment").rglob("*.yaml")
)
NARROW = {
    "vgg16": ["model.network.stages=[[4,4],[4,4],[8,8,8],[8,8,8],[8,8,8]]", "model.network.hidden=[8,8]"],
    "resnet18": ["model.network.widths=[4,4,8,8]"],
    "char_lstm": ["model.network.hidden=8"],
    "vit_small": ["model.network.width=32", "model.network.depth=1"],
}
PAPERS = ["table3", "table10_pufferfish", "table11", "fig5", "fig8"]


@pytest.mark.parametrize(
    ("experiment", "factorization"),
    [(e, None) for e in EXPERIMENTS if "/" not in e]
    + [("quickstart", "dense")]
    + [pytest.param(e, "dense", marks=pytest.mark.slow) for e in EXPERIMENTS if "/" not in e and e != "quickstart"]
    + [pytest.param(e, "low_rank", marks=pytest.mark.slow) for e in EXPERIMENTS if "/" not in e]
    + [pytest.param(f"paper/{name}", None, marks=pytest.mark.slow) for name in PAPERS],
)
def test_every_experiment_runs_two_rounds(shell, tmp_path, experiment, factorization):
    """At its own settings but for size; data on disk are replaced by random ones of the same shape.

    The paper's others are like these, and are built by test_experiments.py.
    """
    choices = choices_of(f"experiment={experiment}")
    small = ["data.max_train=60", "data.max_test=30", "data.batch_size=16", "federation.num_clients=4"]
    small += ["federation.clients_per_round=2", "federation.num_rounds=2", "trainer.max_epochs=1", "logger=none"]
    small += ["hydra.mode=RUN", "federation.eval_every=2", *NARROW.get(choices.model, [])]
    small += ["callbacks.partition_picture=null"] if experiment != "quickstart" else []  # takes longer than the rest
    if choices.data != "mnist_small":
        small += ["data.dataset._target_=helpers.configured.random_data", f"+data.dataset.name={choices.data}"]
    if choices.partition == "natural":
        small += ["partition.min_examples=1"]
    if factorization:
        small += [f"factorization={factorization}", "federation.num_rounds=1"]
    status, error, _ = shell(f"experiment={experiment}", *small)
    assert status == 0, error
    assert [row["round"] for row in rows(newest(tmp_path))] == (["1"] if factorization else ["1", "2"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "choices"),
    [
        ("char_lstm", "factorization=pfedpara sharing=pfedpara algorithm=fedadam"),
        ("char_lstm", "factorization=low_rank sharing=fedper link=fedpaq algorithm=fedprox"),
        ("resnet18", "factorization=fedpara sharing=fedbn algorithm=scaffold link=fp16"),
        ("resnet18", "factorization=hybrid algorithm=feddyn model.network.norm=group"),
        ("resnet18", "factorization=pfedpara sharing=pfedpara algorithm=scaffold link=bf16"),
        ("vit_small", "factorization=low_rank sharing=rotating link=topk"),
    ],
)
def test_models_with_splits_algorithms_and_links(shell, tmp_path, model, choices):
    """What each model adds: recurrent factors, buffers that are averaged but not trained; through one whole round."""
    data = "shakespeare" if model == "char_lstm" else "cifar10"
    random = [f"data={data}", "data.dataset._target_=helpers.configured.random_data", f"+data.dataset.name={data}"]
    small = [option for option in SMALL if not option.startswith("model.")]
    small += ["federation.eval_every=2", "trainer.max_epochs=1", *random, f"model={model}", *NARROW[model]]
    status, error, _ = shell(*small, *choices.split(" "))
    assert status == 0, error
    assert [row["round"] for row in rows(newest(tmp_path))] == ["1", "2"]


CHOICES = [(path.parent.name, path.stem) for path in sorted((ROOT / "configs").glob("*/*.yaml"))]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_yaml_says_what_it_is(group, choice):
    text = (ROOT / "configs" / group / f"{choice}.yaml").read_text()
    first = next(line for line in text.splitlines() if not line.startswith("# @package"))
    assert first.startswith("# "), "a config opens with what it is"


def of_every_group():
    """Sets of choices, one of each group that has one left, until all have been chosen."""
    groups = {}
    for group, choice in CHOICES:
        if group not in {"hydra", "paths"} and choice != "base":  # these are in every composition
            groups.setdefault(group, []).append(choice)
    for choices in zip_longest(*groups.values()):
        yield {group: choice for group, choice in zip(groups, choices, strict=True) if choice}


@pytest.mark.parametrize("chosen", of_every_group(), ids=lambda chosen: "-".join(chosen.values()))
def test_every_yaml_composes(chosen):
    found = choices_of(*(f"{group}={choice}" for group, choice in chosen.items()))
    assert {group: found[group] for group in chosen} == chosen


CONTRACT = {"algorithm", "executor", "factorization", "faults", "link", "partition", "sharing"}
DEAR = {"ray", "auto", "processes"}  # executors that take seconds
BY_OTHERS = {"algorithm", "factorization", "link", "sharing"}  # trained in the contracts of algorithms and executors


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        pytest.param(
            *pair, marks=pytest.mark.slow if pair[0] in BY_OTHERS or pair[1] in DEAR else (), id="-".join(pair)
        )
        for pair in CHOICES
        if pair[0] in CONTRACT
    ],
)
def test_every_choice_trains_a_round(shell, tmp_path, group, choice):
    """A new algorithm, executor, factorisation, link, partition or split is found here by its yaml."""
    other = ["factorization=pfedpara"] if choice == "pfedpara" else ["federation.num_clients=5"]
    if choice == "natural":
        other += ["data.dataset._target_=helpers.configured.owned_digits", "partition.min_examples=1"]
    status, error, _ = shell(*SMALL, *other, f"{group}={choice}", "federation.num_rounds=1", "trainer.max_epochs=1")
    assert status == 0, error
    (row,) = rows(newest(tmp_path))
    assert 0 <= int(row["comm/up_bytes"]) <= int(row["comm/down_bytes"])


@pytest.mark.slow  # the files are restored first
@pytest.mark.real_data
def test_the_main_job_on_the_real_cifar_100(shell, tmp_path, real_data, monkeypatch):
    """VGG16 at full width, real images, two rounds: bytes are 2 x 8 x size x 4 a round."""
    status, error, _ = shell(
        "experiment=fedpara_cifar100", f"paths.data_dir={real_data}", "federation.num_rounds=1", "trainer.max_epochs=1",
        "data.max_train=400", "data.max_test=100", "logger=none", "factorization.jacobian_correction=0",
    )  # fmt: skip
    assert status == 0, error
    (row,) = rows(newest(tmp_path))
    size = json.loads((newest(tmp_path) / "summary.json").read_text())["parameters"]["shared"]
    assert size == 4_485_486
    assert int(row["comm/total_bytes"]) == 2 * 8 * size * 4


def test_a_program_composes_what_these_tests_compose(shell):
    """They leave out what Hydra does over again, see `helpers.composition`."""
    typed = ["experiment=paper/table3", "setting=cifar100_noniid", "algorithm=feddyn", "seed=3", "--cfg", "all"]
    _, _, here = shell(*typed)
    there = subprocess.check_output([sys.executable, ROOT / "src" / "train.py", *typed], text=True)
    assert here == there


IMPORTED = """
import contextlib, io, sys
import train

sys.argv = ["train.py", *sys.argv[1:]]
with contextlib.redirect_stdout(io.StringIO()):
    try:
        train.main()
    except SystemExit as end:
        print(end.code, file=sys.stderr)
files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
print(len(files), *sorted({name.partition(".")[0] for name, file in files.items() if "site-packages" in file}))
"""
LIGHT = {"_distutils_hack", "antlr4", "attr", "attrs", "hydra", "hydra_plugins", "omegaconf", "packaging", "pygments"}
LIGHT |= {"rich", "yaml"}
CHECKING = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}


@pytest.mark.parametrize(
    ("typed", "line", "allowed"),
    thinned(
        [
            ("--help", "0", LIGHT),
            (
                "federation.lr_decy=1",
                "error: federation.lr_decy: no such key; did you mean federation.lr_decay?",
                LIGHT,
            ),
            ("algorithm=fedavgg", "error: Could not find 'algorithm/fedavgg'", LIGHT),
            ("seed=-1", "error: seed=-1: must be", LIGHT),
            (
                "federation.num_clients=-3",
                "error: federation.num_clients=-3: Input should be greater",
                LIGHT | CHECKING,
            ),
        ],
        4,
    ),
)
def test_help_and_wrong_input_need_no_slow_import(tmp_path, typed, line, allowed):
    """The time is that of the imports: torch takes seconds, more on a loaded machine."""
    arguments = [typed] if typed == "--help" else [typed, "logger=none", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments], cwd=ROOT / "src", capture_output=True, text=True, check=True
    )
    assert done.stderr.startswith(line)
    number, *packages = done.stdout.split()
    assert set(packages) <= allowed
    assert int(number) < (450 if allowed is LIGHT else 550)
