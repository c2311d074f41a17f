"""The public names of `fedpara`: each has an example that runs, and importing the package alone imports no torch."""

import doctest
import subprocess
import sys
from importlib import import_module

import pytest

import fedpara


@pytest.mark.parametrize("name", fedpara.__all__)
def test_a_public_name_has_an_example_that_runs(name):
    thing = getattr(fedpara, name)
    module = import_module(thing.__module__)
    (found,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs=dict(vars(module)))
    assert found.examples, f"{name}: no example"
    report = []
    assert not doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found, out=report.append).failed, "".join(report)


def test_the_package_has_an_example_that_runs():
    assert doctest.testmod(fedpara).failed == 0


def test_all_lists_what_there_is():
    assert sorted(name for names in fedpara._HOMES.values() for name in names) == sorted(fedpara.__all__)
    with pytest.raises(AttributeError, match="no attribute 'FedParra'"):
        fedpara.FedParra  # noqa: B018


def test_importing_the_package_imports_no_torch():
    command = "import sys, fedpara; assert not {'torch', 'numpy', 'hydra'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", command], check=True)
