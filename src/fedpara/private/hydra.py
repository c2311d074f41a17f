"""What is used of Hydra beyond its public interface.

Note [Configuration as shown]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
`--cfg job --package X --resolve` cuts out X first, whose references then lead nowhere. `Hydra.get_sanitized_cfg` is
where Hydra takes what it will show; resolving there, before the cut, is the one place that all forms of `--cfg` pass.

Note [The same name]
~~~~~~~~~~~~~~~~~~~~
A run folder's `_target_` is judged before it is built. Were the name looked up in another way than `instantiate` does
it, another object could be judged than the one that is called. `_locate` is Hydra's own way.
"""

from hydra._internal.hydra import Hydra
from hydra._internal.utils import _locate

__all__ = ["Hydra", "locate"]

locate = _locate
