"""Which keys may differ when a run is resumed, and the command that resumes it."""

import json

import pytest
from omegaconf import OmegaConf

from fedpara.app.errors import ConfigurationError
from fedpara.app.resume import check_same, require_no_fewer_rounds, with_saved_overrides
from fedpara.app.run import Launch
from fedpara.callbacks import RunFolder
from helpers.federations import make_federation


def config(schedule, num_rounds):
    federation = {"num_rounds": num_rounds, "lr_schedule": schedule}
    return OmegaConf.create({"factors": {"gamma": 0.1}, "data": {"lone_example": "keep"}, "federation": federation})


def test_more_rounds_are_refused_if_the_schedule_depends_on_their_number(tmp_path):
    OmegaConf.save(config(None, 3), tmp_path / "config.yaml")
    check_same(config(None, 4), tmp_path)
    OmegaConf.save(config("cosine", 3), tmp_path / "config.yaml")
    check_same(config("cosine", 3), tmp_path)
    with pytest.raises(ConfigurationError, match=r"another federation\.num_rounds \(3 then, 4 now\)"):
        check_same(config("cosine", 4), tmp_path)


def test_fewer_rounds_than_a_run_has_are_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("round,test/acc\n1,0.5\n2,0.6\n")
    cfg = OmegaConf.merge(config(None, 2), {"resume": str(tmp_path)})
    require_no_fewer_rounds(cfg)
    cfg.federation.num_rounds = 1
    with pytest.raises(ConfigurationError, match=r"^federation\.num_rounds=1: must be at least 2, its rounds so far"):
        require_no_fewer_rounds(cfg)


def test_the_command_that_resumes_repeats_what_a_run_folder_may_not_say(tmp_path):
    typed, flags = ["model=mine", "trusted=[mine.*]"], ["--config-dir=/my configs"]
    assert Launch(["seed=1"], tmp_path).to_resume(tmp_path / "run") == "python src/train.py resume=run"
    command = Launch(typed, tmp_path, flags).to_resume(tmp_path / "run")
    assert command == "python src/train.py '--config-dir=/my configs' resume=run 'trusted=[mine.*]'"


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run folder, named relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{seed: 0}")
    (tmp_path / "run" / "overrides.yaml").write_text("[seed=0, paths.output_dir=/where/it/was]")
    return tmp_path / "run"


@pytest.mark.parametrize("key", ["hydra.run.dir", "paths.output_dir"])
def test_a_resumed_run_keeps_its_folder(begun, key):
    for same in ("run", f"'{begun}'", "../" + begun.parent.name + "/run"):
        assert f"{key}={same}" in with_saved_overrides(["resume=run", f"{key}={same}"])
    line = f"^{key}=other: must be left out, a resumed run keeps its folder, run$"
    with pytest.raises(ConfigurationError, match=line):
        with_saved_overrides([f"{key}=other", "resume=run"])


def test_a_folder_that_was_typed_is_not_where_a_moved_run_goes_on(begun):
    assert with_saved_overrides(["resume=run"]) == ["seed=0", "hydra.mode=RUN", f"resume='{begun}'"]


@pytest.mark.parametrize("folder", ["", "''", '""'])
def test_an_empty_folder_is_no_new_run(begun, folder):
    with pytest.raises(ConfigurationError, match=f"^resume={folder}: must be a run folder, or null for a new run$"):
        with_saved_overrides([f"resume={folder}"])
    assert with_saved_overrides(["resume=null"]) == ["resume=null"]


def test_numbers_of_bytes_are_whole_in_a_summary_though_nothing_was_left_to_do(tmp_path):
    make_federation(num_rounds=1, callbacks=[RunFolder(tmp_path, {})]).fit()
    before = (tmp_path / "summary.json").read_text()
    again = make_federation(num_rounds=1, callbacks=[RunFolder(tmp_path, {})])
    again.round = 1
    again.fit()
    then, now = (json.loads(text) for text in (before, (tmp_path / "summary.json").read_text()))
    for part in ("bytes_per_round", "metrics"):  # 8 equals 8.0, but is not written like it
        assert json.dumps(then[part], sort_keys=True) == json.dumps(now[part], sort_keys=True)
