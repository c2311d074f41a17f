"""Objects of a configuration by their keys; what goes wrong in one names its key."""

from collections.abc import Callable
from typing import Any, TypeVar

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fedpara.app.errors import blame

T = TypeVar("T")


class Make:
    """`make("model.network")` builds what the configuration has there.

    Every method turns an error that the person can mend into a `ConfigurationError` of one line with the key.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def __call__(self, key: str, **given: Any) -> Any:
        """The object at a dotted key.

        Args:
            given: arguments beside those of the configuration.
        """
        with blame(self.cfg, key):
            return instantiate(OmegaConf.select(self.cfg, key), **given)

    def each(self, group: str) -> list[Any]:
        """The objects of a group that has any number of them; null takes one out."""
        with blame(self.cfg, group):
            return [instantiate(node) for node in (self.cfg[group] or {}).values() if node is not None]

    def check(self, key: str, step: Callable[..., T], *given: Any) -> T:
        """The result of a step that can fail by the values at a key."""
        with blame(self.cfg, key):
            return step(*given)
