"""The tables of robust rules under attack, each made from results/robust_quickstart/runs.csv."""

import csv

from fedpara.report.settings import Estimate
from website.cells import RESULTS, estimate, signed_estimate, table

RUNS = RESULTS / "robust_quickstart/runs.csv"
NETWORKS = {"dense": "dense", "fedpara": "FedPara"}
ATTACKS = {
    "none": "no attack", "sign_flip 10": "sign flip, −10 D", "scaled_update 10": "scaled, 10 D",
    "label_flip": "label flip", "alie 1.5": "ALIE, z = 1.5",
}  # fmt: skip
RULES = ["mean", "median", "trimmed_mean", "multi_krum", "geometric_median", "norm_bounding"]
Accuracies = dict[tuple[str, str, str], dict[str, float]]


def accuracies() -> Accuracies:
    """The last test accuracy of each run, %, by network, attack and rule, then by seed."""
    found: Accuracies = {}
    with RUNS.open() as stream:
        for row in csv.DictReader(stream):  # the last round of a run is its last row
            by_seed = found.setdefault((row["network"], row["attack"], row["rule"]), {})
            by_seed[row["seed"]] = 100 * float(row["test_acc"])
    return found


def robust() -> str:
    """Both networks, without attack and under two that the mean does not stand."""
    of = accuracies()
    columns = [(network, attack) for network in NETWORKS for attack in ("none", "sign_flip 10", "label_flip")]
    heads = [
        "rule",
        *(f"{NETWORKS[network]}, {ATTACKS[attack].removeprefix('sign flip, ')}" for network, attack in columns),
    ]
    rows = [[f"`{rule}`", *(_mean(of[network, attack, rule]) for network, attack in columns)] for rule in RULES]
    return table(heads, rows)


def robust_network(network: str) -> str:
    """All attacks on one network: accuracies, and their differences to its mean without attack, paired by seed."""
    of = accuracies()
    honest = of[network, "none", "mean"]
    measured = [[f"`{rule}`", *(_mean(of[network, attack, rule]) for attack in ATTACKS)] for rule in RULES]
    apart = [[f"`{rule}`", *(_apart(of[network, attack, rule], honest) for attack in ATTACKS)] for rule in RULES]
    heads = [f"{NETWORKS[network]}, %", *ATTACKS.values()]
    return f"{table(heads, measured)}\n\n{table([f'{NETWORKS[network]}, points', *ATTACKS.values()], apart)}"


def _mean(values: dict[str, float]) -> str:
    return estimate(Estimate.of(list(values.values())))


def _apart(values: dict[str, float], honest: dict[str, float]) -> str:
    """The difference to the honest mean; empty for itself."""
    return "" if values is honest else signed_estimate(Estimate.of([values[seed] - honest[seed] for seed in honest]))
