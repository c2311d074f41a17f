"""How far attacked factors move the weights: `python results/robust_quickstart/amplification.py`.

Of one round's ten honest updates two are replaced by -s times themselves, as `faults=sign_flip` does, or by s times
themselves, as `faults=scaled_update` does. Then amplification.csv has |W(attacked mean) - W(honest mean)| / |W(honest
mean) - W(broadcast)|, over all weight matrices W that the means compose, and the same in the space of the parameters
that were sent.
"""

import csv
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import torch
from run import NETWORKS, SETTING
from torch import nn

from fedpara.algorithms import FedAvg, Upload
from fedpara.app.build import build
from fedpara.app.composition import compose
from fedpara.state import Parts, State, combine, load_state, weighted_mean

OUT = Path(__file__).with_name("amplification.csv")
STRENGTHS = (3, 10, 30, 100, 300, 1000)
SIGNS = {"sign_flip": -1, "scaled_update": 1}
ATTACKERS = 2
IDENTITY = {"fedpara identity": "factorization=fedpara factorization.nonlinearity=identity"}


class Looking(FedAvg):
    """FedAvg that keeps the last round's broadcast and uploads."""

    def aggregate(self, server: Parts, received: Parts, uploads: Iterable[Upload]) -> Parts:
        """Keep both."""
        taken = list(uploads)
        self.received, self.models = received["model"], [upload.parts["model"] for upload in taken]
        return super().aggregate(server, received, taken)


def mean(models: list[State]) -> State:
    """With equal weights."""
    return weighted_mean((model, 1) for model in models)


@torch.no_grad()
def weights(network: nn.Module, state: State) -> State:
    """The weight matrices that the network composes from a state."""
    load_state(network, state)
    return {name: layer.weight.clone() for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}


def norm(after: State, before: State) -> float:
    """Of the difference, over all tensors."""
    return sum(float(x.double().square().sum()) for x in combine(after, -1, before).values()) ** 0.5


def main() -> None:
    """The first, the fourth and the eighth round of honest runs."""
    with OUT.open("w") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["seed", "network", "round", "attack", "strength", "in_weights", "in_parameters"])
        for seed, (name, words) in product((0, 1, 2), (NETWORKS | IDENTITY).items()):
            experiment, federation = build(compose([*SETTING, *words.split(), f"seed={seed}"]))
            experiment.datamodule.setup()
            experiment.executor.prepare()
            network = experiment.executor.module.network
            looking = federation.algorithm = Looking().bound(federation.algorithm.trainable, federation.num_clients)
            while federation.round < federation.num_rounds:
                federation.run_round()
                if federation.round not in (1, 4, 8):
                    continue
                start, models = looking.received, looking.models
                before, honest = weights(network, start), weights(network, mean(models))
                for (attack, sign), strength in product(SIGNS.items(), STRENGTHS):
                    wrong = [combine(start, sign * strength, combine(x, -1, start)) for x in models[:ATTACKERS]]
                    attacked = mean([*wrong, *models[ATTACKERS:]])
                    moved = norm(weights(network, attacked), honest) / norm(honest, before)
                    own = norm(attacked, mean(models)) / norm(mean(models), start)
                    table.writerow([seed, name, federation.round, attack, strength, f"{moved:.4g}", f"{own:.4g}"])
                stream.flush()


if __name__ == "__main__":
    main()
