"""Hydra composes a configuration hundreds of times in these tests: a quarter of their time without this.

Left out is what it does over again: a file is parsed once, and `hydra.mode` is found by composing everything once more
only where a preset could set it. Programs that tests start as processes of their own do without.
"""

import copy
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode

from fedpara.private.hydra import Hydra

PRESETS = "experiment=", "sweep="


def compose_quickly():
    """For the rest of this process."""
    for source in Plugins.instance().discover(ConfigSource):
        if source.scheme() in {"file", "pkg"}:
            source.load_config = parsed_once(source.load_config)
    Hydra.get_mode = mode_where_it_is_set(Hydra.get_mode)


def parsed_once(load):
    parsed = {}

    def load_config(self, config_path):
        file = Path(self.path, f"{config_path.removesuffix('.yaml')}.yaml")
        key = self.path, config_path, file.stat().st_mtime_ns if file.is_file() else None
        if key not in parsed:
            parsed[key] = load(self, config_path)
        return copy.deepcopy(parsed[key])

    return load_config


def mode_where_it_is_set(get_mode):
    def mode(self, config_name, overrides, *parsed, **also_parsed):  # Hydra 1.4 hands them over parsed as well
        typed = [override.partition("=")[2] for override in overrides if override.startswith("hydra.mode=")]
        if typed:
            return RunMode.__members__.get(typed[-1])
        if config_name == "train" and not any(override.startswith(PRESETS) for override in overrides):
            return None
        return get_mode(self, config_name, overrides, *parsed, **also_parsed)

    return mode
