"""Which keys `eval.py` takes for a run folder."""

import re
from pathlib import Path

import pytest
import yaml

from fedpara.app.errors import ConfigurationError
from fedpara.app.evaluation import configuration

OLD = Path(__file__).parents[1] / "system" / "old_runs" / "dense"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("paths.datadir=/x", "paths.datadir: no such key; did you mean paths.data_dir?; allowed in paths: root_"),
        ("paths[datadir]=/x", "paths.datadir: no such key; "),
        ("model.keep_dens=[a]", "model.keep_dens: no such key; did you mean model.keep_dense?; allowed in model: "),
        ("model.optimiser.lr=1", "model.optimiser: no such key; did you mean model.optimizer?; "),
        ("federation={num_round: 1}", "federation.num_round: no such key; did you mean federation.num_rounds?; "),
    ],
)
def test_a_misspelt_key_of_a_group_is_refused(typed, line):
    with pytest.raises(ConfigurationError, match=f"^{re.escape(line)}"):
        configuration(OLD, [typed])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.log_every_n_steps", 5), ("model.network.dropout", 0.5), ("data.class_range", [0, 5]),
        ("federation.tiers", {"small": {"share": 1.0, "gamma": 0.1}}), ("federation.catch_up", True),
        ("aggregation._target_", "fedpara.aggregation.Median"), ("model.keep_dense", ["a"]),
    ],
)  # fmt: skip
def test_arguments_of_a_class_and_keys_of_later_versions_are_taken(key, value):
    node = configuration(OLD, [f"{key}={yaml.safe_dump(value, default_flow_style=True).partition(chr(10))[0]}"])
    for name in key.split("."):
        node = node[name]
    assert node == value
