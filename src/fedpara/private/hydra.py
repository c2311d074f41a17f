"""The private names of Hydra that this package uses.

Note [Configuration as shown]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
`--cfg job --package X --resolve` cuts out X first, and then the references in it lead nowhere. All forms of `--cfg`
call `Hydra.get_sanitized_cfg` for the configuration to show, so that is where we resolve it, before the cut.

Note [The same name]
~~~~~~~~~~~~~~~~~~~~
A run folder's `_target_` is checked before it is built. If we looked the name up in another way than `instantiate`
does, we might check one object and call another. `_locate` is Hydra's own look-up.
"""

from hydra._internal.hydra import Hydra
from hydra._internal.utils import _locate

__all__ = ["Hydra", "locate"]

locate = _locate
