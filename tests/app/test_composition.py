"""Composing outside of `python src/train.py`."""

import pytest

from fedpara.app.composition import compose, require_composable
from fedpara.app.errors import ConfigurationError
from fedpara.deployment.split import split


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("algorithm=null", "algorithm=null: must be one of fedadagrad, fedadam, fedavg, "),
        ("partition=0.5", "partition=0.5: must be one of dirichlet, iid, "),
        ("paths=null", "paths=null: must be one of default$"),
    ],
)
def test_a_group_that_is_null_or_a_number_is_one_line_in_every_program(typed, line, tmp_path):
    for program in (compose, require_composable, lambda typed: split(typed, tmp_path)):
        with pytest.raises(ConfigurationError, match=f"^{line}"):
            program(["seed=1", typed])
