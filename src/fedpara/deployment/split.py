"""Split an experiment's data into a folder for each client and one for the server, by the experiment's partition.

    python deploy/split.py experiment=quickstart federation.num_clients=4 out=data/clients

It serves demonstrations: their clients see the batches of a simulated run. Real clients have their own data and write
them with `fedpara.deployment.write_data`.
"""

import sys
from pathlib import Path

from fedpara.app.build import build_experiment
from fedpara.app.composition import compose
from fedpara.app.errors import ConfigurationError, one_line, stop
from fedpara.app.make import Make
from fedpara.data import DataSet, FederatedDataModule
from fedpara.deployment.folders import write_data


def split(overrides: list[str], out: Path) -> None:
    """Write `out/client-<number>` for each client and `out/server`.

    Raises:
        ConfigurationError: the experiment is wrong or its data are missing.
    """
    cfg = compose(overrides)
    data = build_experiment(cfg).datamodule
    Make(cfg).call("data", data.setup)
    _, test = data.examples
    write_data(out / "server", DataSet(str(data.name), test, test, data.num_classes, data.prepare))
    for client in range(data.num_clients):
        write_data(out / f"client-{client}", _own(data, client), client)


def _own(data: FederatedDataModule, client: int) -> DataSet:
    train_examples, test = data.examples
    own, tested = train_examples[data.parts[client]], test[data.test_part(client)]
    return DataSet(str(data.name), own, tested, data.num_classes, data.prepare)


def main() -> None:
    """The command line; an error that the user can fix is one line and exit status 2."""
    typed = sys.argv[1:]
    out = next((argument.partition("=")[2] for argument in typed if argument.startswith("out=")), "")
    try:
        if not out:
            raise ConfigurationError("out=: must be the folder in which to write the clients' folders")
        split([argument for argument in typed if not argument.startswith("out=")], Path(out))
    except (ConfigurationError, OSError, ValueError) as error:
        stop(one_line(error))
