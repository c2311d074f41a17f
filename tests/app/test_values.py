"""Values are checked by the signatures of constructors, read from the source."""

import re
from dataclasses import is_dataclass
from typing import get_type_hints

import pytest
from hydra.utils import get_object
from pydantic import ValidationError

from fedpara.app import values
from helpers import ROOT

TARGETS = {
    target
    for path in (ROOT / "configs").rglob("*.yaml")
    for target in re.findall(r"_target_: (fedpara\S+\.[A-Z]\w+)", path.read_text())
}
FUNCTIONS = {"max_epochs", "options"}  # their validators are functions, which are made anew


@pytest.mark.parametrize("target", sorted(TARGETS.union(*values.ALSO_READ_BY.values())))
def test_what_is_read_from_the_source_is_what_the_class_has(target):
    found = values._annotations(*target.rpartition(".")[::2])
    known = get_object(target)
    checked = known.__init__ if isinstance(known, type) and not is_dataclass(known) else known
    hints = get_type_hints(checked, include_extras=True)
    for name in found.keys() - FUNCTIONS:
        assert repr(found[name]) == repr(hints[name])


def test_the_plain_values_of_a_federation_are_checked():
    module, _, name = values.ALSO_READ_BY["federation"][0].rpartition(".")
    assert {"num_clients", "clients_per_round", "num_rounds", "lr_decay"} <= values._annotations(module, name).keys()


@pytest.mark.parametrize("rule", ["Median", "TrimmedMean", "GeometricMedian", "MultiKrum"])
def test_a_rule_is_checked_by_the_constructor_that_it_inherits(rule):
    with pytest.raises(ValidationError, match="memory_gb\n  Input should be greater than 0"):
        values._check({"memory_gb": -1}, f"fedpara.aggregation.{rule}")


@pytest.mark.parametrize("module", ["os", "fedparas", "fedpara.nowhere", "fedpara.{}.evil"])
def test_nothing_else_is_read(tmp_path, module):
    """A run folder from elsewhere may name any `_target_`."""
    (tmp_path / "evil.py").write_text("class Evil: pass")
    assert values._tree(module.format(tmp_path)) == []
