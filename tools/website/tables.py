"""The tables of README.md and docs/, each made from run folders or benchmark files between two marks of its page.

`<!-- table: NAME -->` and `<!-- table end -->` stand around a table; `python tools/docs.py tables` writes it anew.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from fedpara.report.differences import difference
from fedpara.report.settings import Estimate, Setting, pareto
from fedpara.runs import Run
from fig5 import METHODS, PAIRS, PAPER, SETTINGS
from website.cells import (
    ENDS,
    EXTRAS,
    RESULTS,
    ROOT,
    estimate,
    found,
    mean_cost,
    megabytes,
    megabytes_to,
    origin,
    paper_of_table_3,
    points,
    printed_accuracies,
    rounds_of,
    sent_bytes,
    signed_estimate,
    table,
)
from website.claims import claims
from website.speed import alternatives, cluster, precisions, rounds, server, steps
from website.studies import amplification, frontier_quickstart, robust, robust_network, tiers_quickstart

PLACES = [*(ROOT / "docs").rglob("*.md"), *RESULTS.rglob("README.md")]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in PLACES)]
MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- table end -->)", re.DOTALL)
SHOWN = {"dense": "dense", "low_rank": "low rank", "fedpara": "FedPara"}
PAIRS_OF_NETWORKS = [("fedpara", "low_rank"), ("fedpara", "dense"), ("low_rank", "dense")]
WAYS = {
    "dense": "dense", "dense_fedpaq4": "dense, FedPAQ 4 bits, error feedback", "low_rank": "low rank, same size",
    "low_rank_fedpaq4": "low rank, FedPAQ 4 bits, error feedback", "fedpara": "FedPara, γ = 0.1",
    "fedpaq8": "FedPara, FedPAQ 8 bits", "fedpaq4": "FedPara, FedPAQ 4 bits, error feedback",
    "first_dense_fedpaq4": "FedPara, ranks within 37.5 %, first layer dense, FedPAQ 4 bits",
    "topk": "FedPara, top-k 0.1, error feedback", "fedluar": "FedPara, FedLUAR",
    "rotating": "FedPara, rotating factors", "mud": "FedMUD, ratio 0.1",
}  # fmt: skip
ALGORITHMS = {
    "fedavg": "FedAvg", "fedprox": "FedProx, μ = 0.1", "scaffold": "SCAFFOLD", "feddyn": "FedDyn, α = 0.1",
    "fedadam": "FedAdam",
}  # fmt: skip
INITIALIZATIONS = {
    "variance": "all factors have one scale; Var(W) is the dense layer's",
    "he_fan_out": "PyTorch's fan out, as in Flower's baseline: 2/R for X and Y",
    "variance_core": "the core has its He scale, X and Y share the rest; Var(W) is the dense layer's",
    "he": "plain He: variance 2 / number of the factor's inputs",
    "he_fan_in": "the authors' notebook: 2/O for X, 2/I for Y",
}
GAP = {
    "dense": "dense", "fedpara4_first": "**FedPara, ranks within 37.5 %, 4 bits up, first layer dense**",
    "budget12_first": "FedPara, ranks within 12 %, float32, first layer dense",
    "low_rank4_first": "low rank within 37.5 %, 4 bits up, first layer dense",
    "fedpara4": "FedPara, ranks within 37.5 %, 4 bits up", "fedpara4_step1": "the same, `factorization.step=1`",
}  # fmt: skip


def headline() -> str:
    """README's result."""
    of, closed = found("cifar10_budget"), found("cifar10_gap")
    best, whole = closed["fedpara4_first"], closed["dense"]
    ahead = points(of["fedpara"], of["low_rank"]).lstrip("+")
    (_, dense), (_, ours) = mean_cost(of["dense"], 0.5), mean_cost(of["fedpara"], 0.5)
    rows = [
        [shown, f"{100 * sent_bytes(one) / sent_bytes(base):.1f}", estimate(one.last), points(one, base)]
        for shown, one, base in (
            ("FedPara, γ = 0.1 for all layers", of["fedpara"], of["dense"]),
            ("FedPara, the same bytes split over the layers", of["equal"], of["dense"]),
            ("FedPara, 37.5 % of dense's values in uploads of 4 bits, first layer dense", best, whole),
            ("low rank, the size of γ = 0.1", of["low_rank"], of["dense"]),
        )
    ]
    return (
        f"**For {100 * sent_bytes(best) / sent_bytes(whole):.1f} % of dense's bytes FedPara ends within "
        f"{within(best, whole):.1f} points of it.** At one γ it is {ahead} points above low rank of its size, "
        f"and reaches 50 % with {dense / ours:.1f} times fewer bytes than dense. Means and 95 % intervals over "
        f"{len(of['dense'].counted)} seeds ({len(best.counted)} in the third row), paired:\n\n"
        + table(["", "of dense's bytes, %", "accuracy, %", "minus dense, points"], rows)
    )


def within(variant: Setting, baseline: Setting) -> float:
    """The end of a difference's 95 % interval that is further from 0, in points, without its sign."""
    one = difference(variant, baseline)
    return max(-one.low, one.high)


def cifar10() -> str:
    """Dense, FedPara and low rank on CIFAR-10."""
    of = found("cifar10_two_cores")
    heads = ["", "parameters", "accuracy after 40 rounds, %", "sent, MB", "sent to 46 %, MB"]
    names = {"dense": "dense", "fedpara": "FedPara, γ = 0.1", "low_rank": "low rank, same size"}
    rows = [
        [
            shown, f"{of[name].num_shared:,}", estimate(of[name].last), megabytes(of[name]),
            megabytes_to(of[name], 0.46),
        ]
        for name, shown in names.items()
    ]  # fmt: skip
    return f"{table(heads, rows)}\n\n{differences(of)}\n\n{origin('cifar10_two_cores')}"


def differences(
    of: Mapping[str, Setting],
    pairs: Sequence[tuple[str, str]] = PAIRS_OF_NETWORKS,
    shown: Mapping[str, str] = SHOWN,
) -> str:
    """The table of what settings differ by."""
    rows = [[f"{shown[a]} − {shown[b]}", points(of[a], of[b]), difference(of[a], of[b]).verdict] for a, b in pairs]
    return table([f"difference after {rounds_of(of['dense'])} rounds, paired by seed", "points", "verdict"], rows)


def ranks() -> str:
    """Accuracy over gamma, on small digits."""
    of = found("rank_sweep")
    rows = [
        [
            setting.values["gamma"], f"{setting.num_shared:,}", f"{100 * (setting.ratio or 0):.1f}",
            estimate(setting.last), megabytes(setting), megabytes_to(setting, 0.86, 1),
        ]
        for setting in sorted(of.values(), key=lambda one: float(one.values["gamma"]))
    ]  # fmt: skip
    heads = ["γ", "parameters", "of dense, %", "accuracy after 10 rounds, %", "sent, MB", "sent to 86 %, MB"]
    return f"{table(heads, rows)}\n\n{origin('rank_sweep')}"


def gammas() -> str:
    """Accuracy and training loss over the rounds, dense and FedPara of several gammas."""
    names = {
        "dense": "dense", "fedpara-0.1": "FedPara, γ = 0.1", "fedpara-0.3": "0.3", "fedpara-0.6": "0.6",
        "fedpara-1.0": "1.0", "low_rank": "low rank",
    }  # fmt: skip
    runs = [Run(RESULTS / f"cifar10_gamma/{name}-0") for name in names]
    rows = []
    for number in (8, 20, 28, 36, 40, 56, 80, 100):
        at = [run.rows[number - 1] for run in runs]
        rows.append([str(number), *(f"{100 * row['test/acc']:.1f}, {row['train/loss']:.3f}" for row in at)])
    rows.append(["parameters", *(f"{run.summary['parameters']['shared']:,}" for run in runs)])
    rows.append(["GB in all", *(f"{run.rows[-1]['comm/total_gb']:.2f}" for run in runs)])
    return f"{table(['round', *names.values()], rows)}\n\n{origin('cifar10_gamma')}"


def algorithms() -> str:
    """FedPara under five algorithms: the last test, and the mean of the last five."""
    of, printed = found("table3_two_cores"), paper_of_table_3()
    rows = []
    for name, shown in ALGORITHMS.items():
        one, fedavg = of[name], of["fedavg"]
        ahead = ["", ""] if name == "fedavg" else [points(one, fedavg), late_points(one, fedavg)]
        rows.append([shown, f"{printed[name]:.2f}", estimate(one.last), *ahead, megabytes_to(one, 0.25)])
    rounds = rounds_of(of["fedavg"])
    heads = [
        "", "paper: % after 200", f"% after {rounds}", "minus FedAvg, paired", "the same, mean of the last five tests",
        "sent to 25 %, MB",
    ]  # fmt: skip
    return f"{table(heads, rows)}\n\n{origin('table3_two_cores')}"


def late_points(variant: Setting, baseline: Setting, tests: int = 5) -> str:
    """As `points`, of each run's mean over its last tests, in which less noise is left."""
    ours, theirs = (
        {run.seed or run.name: fmean(one.curve(run)[-tests:, 2]) for run in one.counted} for one in (variant, baseline)
    )
    return signed_estimate(Estimate.of([ours[seed] - theirs[seed] for seed in ours]))


def personalisation() -> str:
    """Fig. 5's four methods in its three scenarios, just trained | after averaging, and pFedPara's differences."""
    metrics = "personal/trained_acc_mean", "personal/acc_mean"
    of = {(scenario, metric): found(f"fig5/final/{scenario}", metric) for scenario in SETTINGS for metric in metrics}
    rows, differences = [], []
    for method, shown in METHODS.items():
        sizes = [megabytes(of[scenario, metrics[0]][method]) for scenario in SETTINGS]
        pairs = [[estimate(of[scenario, metric][method].last) for metric in metrics] for scenario in SETTINGS]
        rows.append([shown, ", ".join(dict.fromkeys(sizes)), *(" | ".join(pair) for pair in pairs)])
    rows.append(["*paper's order*", "", *PAPER.values()])
    for a, b in PAIRS:
        pairs = [[points(of[one, metric][a], of[one, metric][b]) for metric in metrics] for one in SETTINGS]
        differences.append([f"{METHODS[a]} − {METHODS[b]}", *(" | ".join(pair) for pair in pairs)])
    heads = ["", "sent, MB (FEMNIST, MNIST)", *SETTINGS.values()]
    heads_of_differences = ["points, paired by seed", *SETTINGS.values()]
    return f"{table(heads, rows)}\n\n{table(heads_of_differences, differences)}\n\n{origin('fig5/final')}"


def shakespeare() -> str:
    """The LSTM at the paper's rate: dense, low rank and FedPara of one size, and FedPara with dense's step too."""
    more = [("step", "fedpara"), ("step", "low_rank"), ("step", "dense")]
    shown = SHOWN | {"step": "FedPara, `factorization.step=1`"}
    return _networks("shakespeare_two_cores", shown, (12,), [*PAIRS_OF_NETWORKS, *more])


def shakespeare_own_rates() -> str:
    """The LSTM: dense, low rank and FedPara of one size, each at its own rate."""
    shown = {
        "dense": "dense, rate 4", "low_rank": "low rank, rate 2", "low_rank4": "low rank, rate 4",
        "fedpara": "FedPara, rate 4",
    }  # fmt: skip
    return _networks("shakespeare_own_rates", shown, (12, 24, 36), PAIRS_OF_NETWORKS)


def _networks(folder: str, shown: Mapping[str, str], before: Sequence[int], pairs: Sequence[tuple[str, str]]) -> str:
    """Sizes of networks, their accuracy after some rounds and at the end, and the differences there."""
    of = found(folder)
    rows = [
        [
            name, f"{one.num_shared:,}", f"{100 * (one.ratio or 0):.1f}",
            *(estimate(one.estimate(partial(accuracy_after, rounds))) for rounds in before), estimate(one.last),
            str(len(one.counted)), megabytes(one),
        ]
        for one, name in ((of[label], name) for label, name in shown.items())
    ]  # fmt: skip
    first, *later = [*before, rounds_of(of["dense"])]
    heads = ["", "parameters", "of dense, %", f"accuracy after {first} rounds, %", *(f"after {n}, %" for n in later)]
    made = table([*heads, "seeds", "sent, MB"], rows)
    return f"{made}\n\n{differences(of, pairs, shown)}\n\n{origin(folder)}"


def shakespeare_rates(rounds: int = 12) -> str:
    """The LSTM's networks after a few rounds at the paper's rate, 1.0, and at others."""
    at_one, others = found("shakespeare_two_cores"), found("shakespeare_rates")
    rows = []
    for name in ("dense", "low_rank", "fedpara"):
        usual = {run.seed: accuracy_after(rounds, run) for run in at_one[name].counted}
        rows.append([SHOWN[name], "1.0", estimate(Estimate.of([*usual.values()])), str(len(usual)), ""])
        for label in sorted(label for label in others if label.startswith(f"{name}_")):
            own = {run.seed: accuracy_after(rounds, run) for run in others[label].counted}
            gained = signed_estimate(Estimate.of([value - usual[seed] for seed, value in own.items()]))
            rate = label.removeprefix(f"{name}_")
            rows.append([SHOWN[name], rate, estimate(Estimate.of([*own.values()])), str(len(own)), gained])
    heads = ["", "rate", f"accuracy after {rounds} rounds, %", "seeds", "minus that at 1.0, points, paired by seed"]
    return f"{table(heads, rows)}\n\n{origin('shakespeare_rates')}"


def accuracy_after(rounds: int, run: Run) -> float:
    """A run's test accuracy after so many rounds, in %."""
    return 100 * float(run.rows[rounds - 1]["test/acc"])


def budget() -> str:
    """CIFAR-10 with a cosine schedule: dense, low rank, and FedPara with one gamma or ranks within a budget."""
    of = found("cifar10_budget")
    shown = {
        "dense": "dense", "budget12": "FedPara, ranks within 12 %", "fedpara": "FedPara, γ = 0.1",
        "equal": "FedPara, ranks within 8.98 %, the size of γ = 0.1", "low_rank": "low rank, same size as γ = 0.1",
    }  # fmt: skip
    rows = []
    for name, row in shown.items():
        seeds = str(len(of[name].counted))
        behind = "" if name == "dense" else points(of[name], of["dense"])
        share = f"{100 * (of[name].ratio or 0):.1f}"
        rows.append([row, share, estimate(of[name].last), seeds, megabytes(of[name]), behind])
    heads = [
        "",
        "of dense, %",
        "accuracy after 60 rounds, %",
        "seeds",
        "sent, MB",
        "minus dense, points, paired by seed",
    ]
    gained, equal = (points(of[name], of["fedpara"]) for name in ("budget12", "equal"))
    pairs = f"Ranks within 12 % minus γ = 0.1: {gained} points; within 8.98 %, the same bytes: {equal}."
    return f"{table(heads, rows)}\n\n{pairs}\n\n{origin('cifar10_budget')}"


def gap() -> str:
    """What closes the gap to dense: ranks of few bits and a dense first layer, to the end of the same schedule."""
    of, rows = found("cifar10_gap"), []
    dense = of["dense"]
    for name, shown in GAP.items():
        one = of[name]
        share = 100 * sent_bytes(one) / sent_bytes(dense)
        behind = "" if one is dense else points(one, dense)
        row = [shown, f"{100 * (one.ratio or 0):.1f}", megabytes(one), f"{share:.1f}", estimate(one.last)]
        rows.append([*row, str(len(one.counted)), behind])
    sizes = ["", "parameters, of dense, %", "sent, MB", "of dense, %"]
    heads = [*sizes, f"accuracy after {rounds_of(dense)} rounds, %", "seeds", "minus dense, points, paired by seed"]
    ours = of["fedpara4_first"]
    rank, first = points(ours, of["low_rank4_first"]), points(ours, of["fedpara4"])
    pairs = f"The second row minus low rank: {rank} points; minus the same with its first layer factorised: {first}."
    return f"{table(heads, rows)}\n\n{pairs}\n\n{origin('cifar10_gap')}"


def frontier(folder: str, target: float) -> str:
    """Accuracy and bytes of the ways to send less, those of the Pareto set in bold, and differences to FedPara.

    Args:
        target: an accuracy, 0 to 1, whose bytes are listed for the ways that reach it with every seed.
    """
    of, rows = found(folder), []
    best = pareto(list(of.values()))
    for name in sorted(of, key=lambda name: float(megabytes(of[name]).replace(",", ""))):
        way = of[name]
        shown = f"**{WAYS[name]}**" if name in best else WAYS[name]
        behind = "" if name == "fedpara" else points(way, of["fedpara"])
        row = [shown, estimate(way.last), str(len(way.counted)), behind]
        rows.append([*row, *(megabytes(way, end) for end in ENDS), megabytes_to(way, target)])
    rounds = rounds_of(of["fedpara"])
    heads = [
        "",
        f"accuracy after {rounds} rounds, %",
        "seeds",
        "minus FedPara, points, paired by seed",
        "MB up",
        "MB down",
    ]
    return f"{table([*heads, 'MB', f'MB to {100 * target:.0f} %'], rows)}\n\n{origin(folder)}"


def fine_tuning() -> str:
    """The second half of CIFAR-100's classes, from weights of the first: all weights, FedPara's and LoRA's factors."""
    of, rows = found("fine_tuning"), []
    ways = {
        "dense": "all weights",
        "fedpara": "FedPara, γ = 0.1",
        "low_rank": "LoRA (convolutions: Tucker-2), same size",
    }
    for network, shown in (("vgg", "VGG"), ("vit", "vision transformer")):
        lora = of[f"{network}_low_rank"]
        for name, way in ways.items():
            one = of[f"{network}_{name}"]
            row = [shown, way, f"{one.num_shared:,}", megabytes(one), estimate(one.last), str(len(one.counted))]
            rows.append([*row, "" if one is lora else points(one, lora)])
    rounds = rounds_of(lora)
    heads = ["", "", "values that travel", "sent, MB", f"accuracy after {rounds} rounds, %", "seeds"]
    return f"{table([*heads, 'minus LoRA, points, paired by seed'], rows)}\n\n{origin('fine_tuning')}"


def privacy() -> str:
    """Accuracy over epsilon, dense and FedPara, and what the noise costs each; runs without noise are clipped too."""
    of = found("private_femnist")
    rows = []
    for epsilon in sorted({label.partition("_")[2] for label in of}, key=float):
        dense, fedpara = of[f"dense_{epsilon}"], of[f"fedpara_{epsilon}"]
        noise = f"{float(dense.runs[0].rows[-1]['privacy/noise_multiplier']):.2f}"
        row = [epsilon, noise, estimate(dense.last), estimate(fedpara.last), points(fedpara, dense)]
        row += [points(one, of[f"{name}_inf"]) for name, one in (("dense", dense), ("fedpara", fedpara))]
        rows.append(row if epsilon != "inf" else ["∞ (no noise)", *row[1:5], "", ""])
    heads = ["epsilon", "noise, clips", "dense, %", "FedPara, %", "FedPara − dense", "noise − none, dense"]
    return f"{table([*heads, 'noise − none, FedPara'], rows)}\n\n{origin('private_femnist')}"


def initialisation() -> str:
    """The five readings of He initialisation, and their differences to the default."""
    of, rows = found("initialisation"), []
    for name, meaning in INITIALIZATIONS.items():
        ahead = "" if name == "variance" else points(of[name], of["variance"])
        shown = f"`{name}`" + (" (default)" if name == "variance" else "")
        rows.append([shown, meaning, estimate(of[name].last), ahead])
    heads = [
        "`factorization.initialization`",
        "initial factors",
        f"% after {rounds_of(of['variance'])} rounds",
        "minus default, paired",
    ]
    return f"{table(heads, rows)}\n\n{origin('initialisation')}"


def table_4() -> str:
    """FedPara with and without tanh and the Jacobian correction, beside the paper's figures."""
    of, rows = found("table4_two_cores"), []
    printed = printed_accuracies("Table 4", "CIFAR-10 IID").values()
    for (name, shown), paper in zip(EXTRAS.items(), printed, strict=True):
        ahead = "" if name == "identity_0" else points(of[name], of["identity_0"])
        rows.append([shown, f"{paper:.2f}", estimate(of[name].last), ahead])
    heads = ["", "paper: % after 200", f"% after {rounds_of(of['identity_0'])}", "minus neither, paired"]
    return f"{table(heads, rows)}\n\n{origin('table4_two_cores')}"


def cifar100() -> str:
    """Two rounds of the main job on a processor."""
    run = Run(RESULTS / "cifar100_two_rounds")
    rows = [
        [
            f"{row['round']:.0f}", f"{row['train/loss']:.3f}", f"{row['test/loss']:.3f}",
            f"{100 * row['test/acc']:.2f}",
            f"{row['comm/up_bytes'] + row['comm/down_bytes']:,.0f}", f"{row['time/round_s']:.0f}",
        ]
        for row in run.rows
    ]  # fmt: skip
    heads = ["round", "training loss", "test loss", "test accuracy, %", "bytes sent", "seconds"]
    return f"{table(heads, rows)}\n\n{origin('cifar100_two_rounds')}"


MAKERS: dict[str, Callable[[], str]] = {
    "headline": headline, "claims": claims, "alternatives": alternatives, "cifar10": cifar10, "budget": budget,
    "gap": gap, "ranks": ranks, "gammas": gammas,
    "frontier-femnist": partial(frontier, "frontier_femnist", 0.55),
    "frontier-cifar10": partial(frontier, "frontier_cifar10", 0.5), "frontier-quickstart": frontier_quickstart,
    "fine-tuning": fine_tuning, "algorithms": algorithms, "personalisation": personalisation, "privacy": privacy,
    "shakespeare": shakespeare, "shakespeare-own-rates": shakespeare_own_rates,
    "shakespeare-rates": shakespeare_rates, "initialisation": initialisation, "table-4": table_4, "robust": robust,
    "robust-dense": partial(robust_network, "dense"), "robust-fedpara": partial(robust_network, "fedpara"),
    "amplification": amplification, "tiers-quickstart": tiers_quickstart, "cifar100": cifar100, "rounds": rounds,
    "cluster": cluster, "steps": steps, "precisions": precisions, "server": server,
}  # fmt: skip


def written(text: str) -> str:
    """A page with all of its tables made anew.

    Raises:
        KeyError: the page names a table that nothing makes.
    """
    return MARKED.sub(lambda mark: f"{mark[1]}\n{MAKERS[mark['name']]()}\n\n{mark[3]}", text)


def outdated() -> Iterator[tuple[Path, str]]:
    """The pages whose tables are not those of the files, with what they should be."""
    for name in PAGES:
        path = ROOT / name
        text = path.read_text()
        if (now := written(text)) != text:
            yield path, now


def write() -> list[str]:
    """Write the tables of all pages; returns the pages that changed."""
    changed = []
    for path, text in outdated():
        path.write_text(text)
        changed.append(str(path.relative_to(ROOT)))
    return changed
