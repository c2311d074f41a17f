"""The private names of Hydra that this package uses.

Note [Configuration as shown]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
`--cfg job --package X --resolve` cuts out X first, and then the references in it lead nowhere. All forms of `--cfg`
call `Hydra.get_sanitized_cfg` for the configuration to show, so that is where we resolve it, before the cut.

Note [The same name]
~~~~~~~~~~~~~~~~~~~~
A run folder's `_target_` is checked before it is built. If we looked the name up in another way than `instantiate`
does, we might check one object and call another. `_locate` is Hydra's own look-up.

Note [Groups in the help]
~~~~~~~~~~~~~~~~~~~~~~~~~
`--help` asks `ConfigLoaderImpl.get_group_options` for every group several times, and each call copies all
configurations read so far, in case an override changes the search path. Without overrides we ask the loader's own
repository, which gives the same answer; that halves the time of `--help`.

Note [Jobs of a sweep]
~~~~~~~~~~~~~~~~~~~~~~
`BasicSweeper.split_arguments` is how `-m` makes jobs of lists of values; there is no public name for it.
src/reproduce.py needs the jobs without starting them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _locate
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser

__all__ = ["Hydra", "groups_without_copies", "jobs_of_sweep", "locate"]

locate = _locate


def jobs_of_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, the last key varying fastest; see Note [Jobs of a sweep]."""
    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(overrides)), None)[0]


@contextmanager
def groups_without_copies() -> Iterator[None]:
    """List the choices of a group without a copy of the configurations; see Note [Groups in the help]."""
    copying = ConfigLoaderImpl.get_group_options

    def options(
        self: ConfigLoaderImpl,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        if config_name or overrides:
            return copying(self, group_name, results_filter, config_name, overrides)
        return self.repository.get_group_options(group_name, results_filter)

    ConfigLoaderImpl.get_group_options = options  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.get_group_options = copying  # type: ignore[method-assign]
