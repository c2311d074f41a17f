"""Which keys may differ when a run is resumed."""

import pytest
from omegaconf import OmegaConf

from fedpara.app.errors import ConfigurationError
from fedpara.app.resume import check_same


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
