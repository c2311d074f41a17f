"""The private names of Hydra that this package uses.

Note [Configuration as shown]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
`--cfg job --package X --resolve` cuts out X first, and then the references in it lead nowhere. All forms of `--cfg`
call `Hydra.get_sanitized_cfg` for the configuration to show, so that is where we resolve it, before the cut.

Note [The same name]
~~~~~~~~~~~~~~~~~~~~
A run folder's `_target_` is checked before it is built. If we looked the name up in another way than `instantiate`
does, we might check one object and call another. `_locate` is Hydra's own look-up.

Note [Jobs of a sweep]
~~~~~~~~~~~~~~~~~~~~~~
`BasicSweeper.split_arguments` is how `-m` makes jobs of lists of values; there is no public name for it.
src/reproduce.py needs the jobs without starting them.
"""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _locate
from hydra.core.override_parser.overrides_parser import OverridesParser

__all__ = ["Hydra", "jobs_of_sweep", "locate"]

locate = _locate


def jobs_of_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, the last key varying fastest; see Note [Jobs of a sweep]."""
    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(overrides)), None)[0]
