"""Composing outside of `python src/train.py`."""

import re

import pytest

from fedpara.app.composition import choices_named, compose, require_composable
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


@pytest.mark.parametrize("typed", ["algorithm=-1", "algorithm=fedavg,1", "algorithm=range(2)"])
def test_the_group_without_a_name_is_blamed_and_no_other(typed):
    """The choice of an experiment in a folder is not in the list of the files beside that folder."""
    others = ["experiment=paper/table2", "partition=iid,dirichlet", "callbacks=default"]
    line = f"^{re.escape(typed)}: must be one of fedadagrad, fedadam, "
    with pytest.raises(ConfigurationError, match=line), choices_named([*others, typed]):
        raise ValueError("Config group override must be a string or a list. Got int")
