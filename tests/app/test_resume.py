"""Which keys may differ when a run is resumed, and the command that resumes it."""

import pytest
from omegaconf import OmegaConf

from fedpara.app.errors import ConfigurationError
from fedpara.app.resume import check_same, require_no_fewer_rounds
from fedpara.app.run import Launch


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
