"""The program `dashboard`: it prints the project's W&B workspace as JSON; with `entity=<yours>` it saves it to W&B."""

import sys

from fedpara.app.errors import show_usage, stop
from fedpara.installation import command_of, install_line

USAGE = "[entity=<yours>] [project=fedpara] [name=FedPara] [metric=acc] [best=max]"


def main() -> None:
    """Print the JSON of the workspace, or save it to W&B and print its address."""
    show_usage(f"{command_of('dashboard')} {USAGE}\n\n{__doc__}")
    arguments = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    try:
        if unknown := arguments.keys() - {"entity", "project", "name", "metric", "best"}:
            raise ValueError(f"{min(unknown)}: no such key; {command_of('dashboard')} {USAGE}")
        from fedpara.dashboard import workspace
        from fedpara.metric import Metric
        from fedpara.private.wandb import as_json

        headline = Metric(arguments.pop("metric", "acc"), _more_is_better(arguments.pop("best", "max")))
        given = {"entity": "", "project": "fedpara", "name": "FedPara"} | arguments
        made = workspace(**given, headline=headline)
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


def _more_is_better(best: str) -> bool:
    if best not in ("max", "min"):
        raise ValueError(f"best={best}: must be max or min")
    return best == "max"
