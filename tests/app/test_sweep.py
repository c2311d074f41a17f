"""Names of sweeps and of their jobs, devices in turn, the value of a job."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from fedpara.app import sweep
from fedpara.app.sweep import job_name, sweep_name, visible_devices

TYPED = ("-m", "experiment=quickstart", "factorization.gamma=0.1,0.2", "seed=range(3)", "hydra/launcher=joblib")


def test_the_same_command_finds_its_folder_and_another_does_not():
    assert sweep_name(TYPED) == sweep_name(("-m", *reversed(TYPED[1:-1]), "hydra.launcher.n_jobs=2"))
    assert sweep_name(TYPED).startswith("quickstart-")
    assert sweep_name(("experiment=paper/fig5",)).startswith("paper-fig5-")
    assert sweep_name(TYPED) != sweep_name((*TYPED[:3], "seed=range(4)"))
    assert sweep_name(TYPED) == "quickstart-e4f6fb"


def test_a_deletion_is_a_part_of_the_command():
    deleted, other = (sweep_name((*TYPED, word)) for word in ("~model.network.dropout", "~model.network.norm"))
    assert len({sweep_name(TYPED), deleted, other}) == 3
    assert sweep_name((*TYPED, "~hydra.job.env_set.A")) == sweep_name(TYPED)
    assert sweep_name(("~experiment", "seed=1,2")).startswith("sweep-")
    typed = ("~model.network.dropout", "seed=1,2")
    assert job_name(typed, ["~model.network.dropout", "seed=1"]) == "seed=1"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["experiment=quickstart", "factorization.gamma=0.1", "seed=0"], "gamma=0.1_seed=0"),
        (["experiment=quickstart"], "job"),
        (["a.rate=1", "b.rate=2"], "a.rate=1_b.rate=2"),
        (["+model.network.stages=[[4],[8]]"], "stages=-4-8--866886"),
        (["data.dataset.data_dir=/a/b"], "data_dir=-a-b-c15ecc"),
    ],
)
def test_a_job_is_named_by_what_varies(overrides, name):
    assert job_name(TYPED, overrides) == name


def test_names_of_jobs_stay_apart_where_letters_are_replaced():
    assert job_name(TYPED, ["x=a/b"]) != job_name(TYPED, ["x=a:b"])
    assert len(job_name(TYPED, [f"x={'y' * 300}"])) < 120


def test_devices_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_devices() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices() == []


@pytest.mark.parametrize(("logged", "value"), [("0.25", 0.25), ("nan", 0.0), ("", 0.0)])
def test_a_job_whose_metric_is_nan_has_the_worst_value(tmp_path, monkeypatch, logged, value):
    """NaN would end a sweep of Optuna."""
    monkeypatch.setattr(sweep, "is_finished", lambda *_: True)
    (tmp_path / "summary.json").write_text('{"state": "finished"}')
    (tmp_path / "metrics.csv").write_text(f"round,test/acc\n1,{logged}\n")
    cfg = OmegaConf.create({"paths": {"output_dir": str(tmp_path)}, "model": {}})
    hydra_cfg = SimpleNamespace(sweeper=OmegaConf.create(), overrides=SimpleNamespace(task=[]))
    assert sweep.job(cfg, hydra_cfg) == value
