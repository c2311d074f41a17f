"""The tables of small studies on 5,000 digits, each made from the CSV file of its folder of results/."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, product
from statistics import fmean

from fedpara.report.settings import Estimate
from website.cells import RESULTS, estimate, signed_estimate, table

Row = dict[str, str]
NETWORKS = {"dense": "dense", "fedpara": "FedPara"}
ATTACKS = {
    "none": "no attack", "sign_flip 10": "sign flip, −10 D", "scaled_update 10": "scaled, 10 D",
    "label_flip": "label flip", "alie 1.5": "ALIE, z = 1.5",
}  # fmt: skip
RULES = ["mean", "median", "trimmed_mean", "multi_krum", "geometric_median", "norm_bounding"]
STRENGTHS = ["3", "10", "30", "100", "300", "1000"]
WAYS = {
    "dense": "dense", "fedpara": "FedPara", "fedpara rotating, catch-up": "FedPara, rotating, catch-up",
    "fedpara fedpaq 8": "FedPara, FedPAQ 8", "fedpara top-k 0.1": "FedPara, top-k 0.1", "low rank": "low rank",
    "fedmud, a 0.3": "FedMUD, a = 0.3", "fedmud, a 0.175": "FedMUD, a = 0.175",
    "fedmud without AAD": "FedMUD without AAD, a = 0.3", "fedmud blocks, a 1.2": "FedMUD blocks, a = 1.2",
}  # fmt: skip
TIERS = [  # the run, whose model, and the column of its accuracy
    ("all gamma 0.1", "the only one", "test/acc"), ("all gamma 0.5", "the only one", "test/acc"),
    ("half and half", "the servers'", "test/acc_server"), ("half and half", "the phones'", "test/acc_phone"),
]  # fmt: skip
Accuracies = dict[tuple[str, str, str], dict[str, float]]


def rows_of(folder: str, file: str = "runs.csv") -> list[Row]:
    """The rows of a study."""
    with (RESULTS / folder / file).open() as stream:
        return list(csv.DictReader(stream))


def accuracies() -> Accuracies:
    """The last test accuracy of each run, %, by network, attack and rule, then by seed."""
    found: Accuracies = {}
    for row in rows_of("robust_quickstart"):  # the last round of a run is its last row
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


def amplification() -> str:
    """How far attacked factors move W and themselves, relative to an honest step, in the last measured round."""
    found = rows_of("robust_quickstart", "amplification.csv")
    last = max(int(row["round"]) for row in found)
    of: dict[tuple[str, str, str], list[Row]] = {}
    for row in found:
        if int(row["round"]) == last:
            of.setdefault((row["network"], row["attack"], row["strength"]), []).append(row)

    def moved(network: str, attack: str, strength: str) -> list[str]:
        weights, factors = (
            Estimate.of([float(row[column]) for row in of[network, attack, strength]])
            for column in ("in_weights", "in_parameters")
        )
        return [_three_digits(weights), _three_digits(replace(factors, half_width=math.nan))]

    rows = []
    for (attack, shown), strength in product({"sign_flip": "−s D", "scaled_update": "s D"}.items(), STRENGTHS):
        dense, *ours = (moved(network, attack, strength) for network in ("dense", "fedpara", "fedpara identity"))
        rows.append([shown, strength, dense[0], *chain(*ours)])
    heads = ["", "s", "dense", "FedPara, tanh (default)", "its factors", "FedPara, identity", "its factors"]
    return table(heads, rows)


def _three_digits(value: Estimate) -> str:
    """A mean with about three digits."""
    return estimate(value, next((digits for least, digits in ((100, 0), (10, 1)) if value.mean >= least), 2))


def frontier_quickstart() -> str:
    """Accuracy and bytes of ways to send less, and differences to FedPara; those of runs that did not diverge."""
    found = rows_of("frontier_quickstart")
    last = max(int(row["round"]) for row in found)
    whole = {(row["run"], row["seed"]) for row in found if int(row["round"]) == last}
    kept = [row for row in found if (row["run"], row["seed"]) in whole]
    of = {run: {seed: 100 * x for seed, x in one.items()} for run, one in _by_run(kept, "test_acc").items()}
    sent = {end: _by_run(kept, f"{end}_bytes", sum) for end in ("up", "down")}
    rows = []
    for name, shown in WAYS.items():
        one = of[name]
        diverged = len({row["seed"] for row in found if row["run"] == name}) - len(one)
        seeds = f"{len(one)}" + (f", {diverged} more diverged" if diverged else "")
        ways = [fmean(sent[end][name].values()) / 1e6 for end in ("up", "down")]
        behind = "" if name == "fedpara" else _apart(one, {seed: of["fedpara"][seed] for seed in one})
        rows.append([shown, _mean(one), seeds, behind, *(f"{way:.2f}" for way in [*ways, sum(ways)])])
    return table(["", "accuracy, %", "seeds", "minus FedPara, points, paired by seed", "MB up", "MB down", "MB"], rows)


def tiers_quickstart() -> str:
    """Clients of different size beside clients of one size."""
    found = rows_of("tiers_quickstart")
    sent = _by_run(found, "comm/total_bytes")
    rows = []
    for name, model, column in TIERS:
        of = {seed: 100 * value for seed, value in _by_run(found, column)[name].items()}
        megabytes = [f"{of_all(sent[name].values()) / 1e6:.1f}" for of_all in (min, max)]
        each = ", ".join(f"{value:.1f}" for value in of.values())
        rows.append([name, model, _mean(of), each, " to ".join(dict.fromkeys(megabytes))])
    return table(["clients", "whose model", "accuracy, %", "seeds 0, 1, 2", "MB"], rows)


def _by_run(
    found: Sequence[Row], column: str, of: Callable[[list[float]], float] = lambda values: values[-1]
) -> Mapping[str, dict[str, float]]:
    """The last value of each run's column, or another figure of its values, by run and seed."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in found:
        if row[column]:
            values.setdefault(row["run"], {}).setdefault(row["seed"], []).append(float(row[column]))
    return {run: {seed: of(one) for seed, one in by_seed.items()} for run, by_seed in values.items()}


def _mean(values: dict[str, float]) -> str:
    return estimate(Estimate.of(list(values.values())))


def _apart(values: dict[str, float], honest: dict[str, float]) -> str:
    """The difference to the honest mean; empty for itself."""
    return "" if values is honest else signed_estimate(Estimate.of([values[seed] - honest[seed] for seed in honest]))
