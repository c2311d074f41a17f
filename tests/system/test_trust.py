"""A stranger's run folder: nothing that it names is run, by any way in; what one trusts is named."""

import re

import pytest
import yaml

from fedpara.app import cli, evaluation
from fedpara.app.errors import ConfigurationError
from fedpara.app.trust import TRUSTED, require_trusted, require_trusted_overrides, trusted_names
from fedpara.report import write_report
from fedpara.runs import find_runs
from helpers import ROOT
from helpers.shell import SMALL

CALLED = []


def called(*arguments, **options):
    """What a stranger would run."""
    CALLED.append((arguments, options))
    raise AssertionError("run")


OWN = "test_trust.called"
LEAVES_BY_ATTRIBUTES = [
    "torch.nn.functional.torch.load",
    "torch.nn.modules.module.torch.hub.load",
    "fedpara.data.files.os.system",
    "fedpara.data.files.pooch.retrieve",
    "pytorch_lightning.loggers.wandb.os.system",
    "torch.optim.optimizer.torch.load",
    "torch.nn.Module.load_state_dict",
    "fedpara.app.sweep.run_job",
    "fedpara.files.write_atomically",
    "os.system",
    "builtins.eval",
    "hydra.utils.get_method",
    "torch.nn.functional.__builtins__.eval",
    "torch.nn.nowhere.Layer",
    3,
    None,
]


@pytest.mark.parametrize("name", LEAVES_BY_ATTRIBUTES)
def test_a_name_is_trusted_by_what_it_leads_to(name):
    with pytest.raises(ConfigurationError, match=re.escape("x: a.b.0._target_=")):
        require_trusted("x", {"a": {"b": [{"_target_": name}]}}, [])


def test_all_that_our_own_configs_build_is_trusted():
    texts = [path.read_text() for path in (ROOT / "configs").rglob("*.yaml") if "hydra" not in path.parts]
    names = {name for text in texts for name in re.findall(r"_target_: (\S+)", text)}
    assert len(names) > 30
    for name in [*names, "torch.optim.Adam", "torch.nn.ReLU", "pytorch_lightning.callbacks.WeightAveraging"]:
        require_trusted("x", {"_target_": name}, [])
    assert not [name for name in names if "$" in name]  # no value of an override becomes a name


ATTACKS = {
    "config.yaml": [
        ("algorithm._target_", OWN),
        ("model.optimizer._args_", [{"_target_": OWN}]),
        ("model.network.widths", [784, {"_target_": OWN, "_partial_": True}, 10]),
        ("trainer.plugins", {"a": {"b": [{"_target_": OWN}]}}),
        ("data.transform", "${oc.create:'{_target_: test_trust.called}'}"),
        ("data.transform", "\\${oc.create:'{_target_: test_trust.called}'}"),
        ("algorithm._target_", "${oc.env:ATTACK}"),
    ],
    "overrides.yaml": [
        "algorithm._target_=test_trust.called",
        "+callbacks.x={a:[{_target_:test_trust.called}]}",
        "+hydra.callbacks.x._target_=test_trust.called",
        "++hydra.callbacks={x:{_target_:test_trust.called}}",
        "hydra/launcher=joblib",
        "hydra.sweeper._target_=test_trust.called",
        "algorithm@hydra.callbacks.x=fedavg",
        "={hydra:{callbacks:{x:{_target_:test_trust.called}}}}",
        "--config-dir=elsewhere",
        "--experimental-rerun=elsewhere/config.pickle",
        "experiment=../../elsewhere",
        "algorithm=/elsewhere/x",
        "data=[mnist_small,../x]",
        "+callbacks.x=${oc.create:'{_target_: test_trust.called}'}",
        "algorithm._target_=${oc.env:ATTACK}",
        "+logger.x.notes=${oc.env:SECRET}",
        "+callbacks.x='\\${oc.create:{_target_:test_trust.called}}'",
        "+callbacks.x=${seed}'$'{oc.env:ATTACK}",
        "hydra.job.num=${oc.env:SECRET}",
        "hydra.job_logging.handlers.x.(\\)=test_trust.called",
        "trusted=[test_trust.*]",
    ],
}


@pytest.fixture
def run(shell, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTACK", OWN)
    arguments = ["model=mlp", *(option for option in SMALL if "stages" not in option), "federation.num_rounds=1"]
    assert shell(*arguments, f"hydra.run.dir={tmp_path / 'run'}")[0] == 0
    CALLED.clear()
    return tmp_path / "run"


@pytest.mark.slow
def test_no_way_into_a_strangers_folder(shell, run):
    whole = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in ATTACKS["config.yaml"]:
        config = yaml.safe_load((run / "config.yaml").read_text())
        node = config
        for name in key.split(".")[:-1]:
            node = node[name]
        node[key.rpartition(".")[2]] = value
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        status, error, _ = shell(f"run={run}", program=evaluation)
        assert (status, error.count("\n"), CALLED) == (2, 1, []), (key, value, error)
        write_report(find_runs(run), run.parent / "report", "r", None, "test/acc")
        (run / "config.yaml").write_text(yaml.safe_dump(whole))
    typed = yaml.safe_load((run / "overrides.yaml").read_text())
    for attack in ATTACKS["overrides.yaml"]:
        saved = [*typed, attack]
        saved += ["algorithm._target_=test_trust.called"] if attack.startswith("trusted") else []
        (run / "overrides.yaml").write_text(yaml.safe_dump(saved))
        status, error, _ = shell(f"resume={run}", "federation.num_rounds=2")
        assert (status, error.count("\n"), CALLED) == (2, 1, []), (attack, error)
        assert "type it behind resume=" in error or "trusted=[test_trust.*]" in error or "not an override" in error


@pytest.mark.slow
def test_what_is_named_is_allowed(shell, run, tmp_path):
    own = ["model=mlp", *(option for option in SMALL if "stages" not in option), "federation.num_rounds=1"]
    own += ["data.dataset._target_=test_trust.digits", f"hydra.run.dir={tmp_path / 'own'}"]
    assert shell(*own)[0] == 0
    line = (
        "data.dataset._target_='test_trust.digits': must be a class or function of fedpara, torch.nn, torch.optim or "
        "Lightning; if you trust this name, allow it by trusted=[test_trust.*]"
    )
    for program, key, more in ((evaluation, "run", []), (cli, "resume", ["federation.num_rounds=2"])):
        assert shell(f"{key}={tmp_path / 'own'}", *more, program=program)[:2] == (
            2, f"error: {key}={tmp_path / 'own'}: {line}\n",
        )  # fmt: skip
        status, error, _ = shell(f"{key}={tmp_path / 'own'}", "trusted=[test_trust.*]", *more, program=program)
        assert status == 0, error
    more = ["federation.num_rounds=3", "data.dataset._target_=test_trust.digits"]
    assert shell(f"resume={tmp_path / 'own'}", *more)[0] == 0  # what is typed now is the person's own


def digits():
    from fedpara.data.sets.mnist_small import mnist_small

    return mnist_small()


def test_what_may_be_saved_may_be_applied_again():
    kept = [
        "experiment=paper/fig5",
        "seed=3",
        "hydra.job.num=2",
        "~logger.wandb",
        "executor@executor.inner=vectorized",
        "factorization.layers={conv9:{rank:2}}",
        "model.optimizer.lr=${seed}",
        "paths.data_dir='/a/o\\'b/{x:y}'",
        "model.optimizer._target_=torch.optim.Adam",
        "+trainer.callbacks=[{_target_:fedpara.callbacks.ProgressDisplay}]",
    ]
    require_trusted_overrides("x", kept, [])
    assert TRUSTED[-1] == "pytorch_lightning.loggers.*"
    assert trusted_names(["seed=1", "trusted=[a.*,b.C]"]) == ["a.*", "b.C"]
    with pytest.raises(ConfigurationError, match="trusted=a: must be a list of names"):
        trusted_names(["trusted=a"])


def test_a_reference_put_together_from_two_texts_is_not_resolved(shell, run):
    """Hydra resolves what it builds once more: a text that reads as a reference by then would be one."""
    typed = yaml.safe_load((run / "overrides.yaml").read_text())
    attack = ["+a.y='$'", "+a.z='{oc.create:\"{_target_: test_trust.called}\"}'", "+callbacks.x='${a.y}${a.z}'"]
    (run / "overrides.yaml").write_text(yaml.safe_dump([*typed, *attack]))
    status, error, _ = shell(f"resume={run}", "federation.num_rounds=2")
    assert (status, error.count("\n"), CALLED) == (2, 1, []), error
    assert "must not hold ${" in error
