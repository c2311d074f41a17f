"""The project's W&B workspace: `python src/dashboard.py` prints it; with `entity=<yours>` it is saved to W&B."""

import sys

USAGE = "python src/dashboard.py [entity=<yours>] [project=fedpara] [name=FedPara] [metric=acc] [best=max]"


def main() -> None:
    """Print the JSON of the workspace, or save it to W&B and print its address."""
    arguments = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    try:
        if unknown := arguments.keys() - {"entity", "project", "name", "metric", "best"}:
            raise ValueError(f"{min(unknown)}: no such key; {USAGE}")
        from fedpara.dashboard import workspace
        from fedpara.metric import Metric
        from fedpara.private.wandb import as_json

        headline = Metric(arguments.pop("metric", "acc"), _more_is_better(arguments.pop("best", "max")))
        given = {"entity": "", "project": "fedpara", "name": "FedPara"} | arguments
        made = workspace(**given, headline=headline)
    except ModuleNotFoundError as error:
        _stop(f"{error.name}: not installed; pip install -e '.[dashboard]'")
    except ValueError as error:
        _stop(str(error))
    if not made.entity:
        print(as_json(made))
        return
    try:
        print(made.save().url)
    except Exception as error:  # W&B's: no account, no network, no such entity
        _stop(f"entity={made.entity}: W&B refused ({' '.join(str(error).split())[:300]})")


def _more_is_better(best: str) -> bool:
    if best not in ("max", "min"):
        raise ValueError(f"best={best}: must be max or min")
    return best == "max"


def _stop(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
