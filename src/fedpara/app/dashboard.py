"""The program `dashboard`: it prints the project's W&B workspace as JSON; with `entity=<yours>` it saves it to W&B."""

import math
import re
import sys

from fedpara.app.errors import show_usage, stop
from fedpara.installation import command_of, install_line
from fedpara.metric import Metric

USAGE = (
    "[entity=<yours>] [project=fedpara] [name=FedPara] [metric=acc] [best=max] [personal=false] [target=<value>,...]"
)
KEYS = set(re.findall(r"(\w+)=", USAGE))


def main() -> None:
    """Print the JSON of the workspace, or save it to W&B and print its address."""
    show_usage(f"{command_of('dashboard')} {USAGE}\n\n{__doc__}")
    arguments = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    try:
        if unknown := arguments.keys() - KEYS:
            raise ValueError(f"{min(unknown)}: no such key; {command_of('dashboard')} {USAGE}")
        from fedpara.dashboard import workspace
        from fedpara.private.wandb import as_json

        headline = Metric(arguments.pop("metric", "acc"), _one_of("best", arguments, "max", "min"))
        personal = not _one_of("personal", arguments, "false", "true")
        targets = _targets(arguments.pop("target", ""), headline)
        given = {"entity": "", "project": "fedpara", "name": "FedPara"} | arguments
        made = workspace(**given, headline=headline, targets=targets, personal=personal)
    except ModuleNotFoundError as error:
        stop(f"{error.name}: not installed; {install_line('dashboard')}")
    except ValueError as error:
        stop(str(error))
    if not made.entity:
        print(as_json(made))
        return
    try:
        print(made.save().url)
    except Exception as error:  # W&B's: no account, no network, no such entity
        stop(f"entity={made.entity}: W&B refused ({' '.join(str(error).split())[:300]})")


def _one_of(key: str, arguments: dict[str, str], usual: str, other: str) -> bool:
    """Take a key out of the arguments; whether it has the usual value, which is also that of a missing key."""
    value = arguments.pop(key, usual)
    if value not in (usual, other):
        raise ValueError(f"{key}={value}: must be {usual} or {other}")
    return value == usual


def _targets(typed: str, headline: Metric) -> list[float]:
    """The targets in `0.8,0.9`, as `logger.wandb.target` has them; none of an empty text."""
    try:
        targets = [float(word) for word in typed.strip("[]").split(",") if word]
    except ValueError as error:
        raise ValueError(f"target={typed}: must be numbers with commas between them") from error
    if not all(0 < one <= 1 if headline.is_share else math.isfinite(one) for one in targets):
        raise ValueError(f"target={typed}: must be {'above 0, at most 1' if headline.is_share else 'finite'}")
    return targets
