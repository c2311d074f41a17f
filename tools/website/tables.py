"""The tables of README.md and docs/, each made from run folders or benchmark files between two marks of its page.

`<!-- table: NAME -->` and `<!-- table end -->` stand around a table; `python tools/docs.py tables` writes it anew.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

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

BENCHMARKS = RESULTS / "benchmark"
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- table end -->)", re.DOTALL)
SHOWN = {"dense": "dense", "fedpara": "FedPara", "low_rank": "low rank"}
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
NETS = {"tiny": "3,259 parameters", "cnn": "815,016 parameters", "pfl": "pfl's own network"}
VARIANTS = {
    "floor": "hand-written loop", "floor_channels_last": "the same in channels_last",
    "limit": "**the machine's limit**",
    "serial": "**`executor=serial`**", "single_batches": "`serial`, `whole_epochs=false`", "processes": "`processes`",
    "vectorized": "`vectorized`", "auto": "**`auto`**", "flower": "Flower 1.41, two actors", "pfl": "pfl-research 0.6",
    "fedlab": "FedLab 1.3",
}  # fmt: skip
CLUSTER = {
    "serial": "`serial`", "processes": "`processes`", "ray": "**`ray`**, one node, two actors",
    "ray_two_nodes": "**`ray`**, two one-core nodes", "flower": "Flower's simulation (on Ray), two actors",
}  # fmt: skip
LAYERS = {
    "conv 64@32": "64 channels, 32 × 32", "conv 128@16": "128, 16 × 16", "conv 256@8": "256, 8 × 8",
    "conv 512@4": "512, 4 × 4", "conv 512@2": "512, 2 × 2",
}  # fmt: skip


def headline() -> str:
    """README's result."""
    of, closed = found("cifar10_budget"), found("cifar10_gap")
    (_, dense), (_, ours) = mean_cost(of["dense"], 0.5), mean_cost(of["fedpara"], 0.5)
    ahead, behind = points(of["fedpara"], of["low_rank"]), points(of["dense"], of["fedpara"])
    best, whole = closed["fedpara4_first"], closed["dense"]
    share = 100 * sent_bytes(best) / sent_bytes(whole)
    return (
        f"**FedPara is {ahead.lstrip('+')} points above a low-rank network of its size** "
        f"({estimate(of['fedpara'].last)} % against {estimate(of['low_rank'].last)} %; mean and 95 % interval over "
        f"three seeds, paired), and reaches 50 % accuracy with {dense / ours:.1f} times fewer bytes than the dense "
        f"network. The dense network is ahead after the same number of rounds, by {behind.lstrip('+')} points. "
        "With its first layer dense and four times the parameters, in uploads of four bits, FedPara has "
        f"{estimate(best.last)} % against {estimate(whole.last)} % for {share:.1f} % of dense's bytes: "
        f"{points(best, whole)} points, no difference that three seeds can show."
    )


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
    """The LSTM: dense, low rank and FedPara of one size, FedPara with dense's step too, with their differences."""
    of = found("shakespeare_two_cores")
    last = rounds_of(of["dense"])
    shown = SHOWN | {"step": "FedPara, `factorization.step=1`"}
    rows = [
        [
            shown[name], f"{of[name].num_shared:,}", f"{100 * (of[name].ratio or 0):.1f}",
            estimate(of[name].estimate(partial(accuracy_after, last // 2))), estimate(of[name].last),
            str(len(of[name].counted)), megabytes(of[name]),
        ]
        for name in ("dense", "low_rank", "fedpara", "step")
    ]  # fmt: skip
    heads = ["", "parameters", "of dense, %", f"accuracy after {last // 2} rounds, %", f"after {last}, %"]
    pairs = [*PAIRS_OF_NETWORKS, ("step", "fedpara"), ("step", "low_rank"), ("step", "dense")]
    made = table([*heads, "seeds", "sent, MB"], rows)
    return f"{made}\n\n{differences(of, pairs, shown)}\n\n{origin('shakespeare_two_cores')}"


def accuracy_after(rounds: int, run: Run) -> float:
    """A run's test accuracy after so many rounds, in %."""
    return 100 * float(run.rows[rounds - 1]["test/acc"])


def budget() -> str:
    """CIFAR-10 with a cosine schedule: dense, low rank, and FedPara with one gamma or ranks within a budget."""
    of = found("cifar10_budget")
    shown = {
        "dense": "dense", "budget12": "FedPara, ranks within 12 %", "fedpara": "FedPara, γ = 0.1",
        "low_rank": "low rank, same size as γ = 0.1",
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
    gained = points(of["budget12"], of["fedpara"])
    return f"{table(heads, rows)}\n\nRanks within 12 % minus γ = 0.1: {gained} points.\n\n{origin('cifar10_budget')}"


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


def benchmark(name: str) -> dict[str, Any]:
    """A file of results/benchmark."""
    read: dict[str, Any] = json.loads((BENCHMARKS / f"{name}.json").read_text())
    return read


def rounds() -> str:
    """Seconds of a round, of executors and other simulators."""
    files = {net: benchmark(net) for net in NETS}
    rows = []
    for name, shown in VARIANTS.items():
        found = [read["nets"][net].get(name) for net, read in files.items()]
        starts = [f"{result['to_first_round_s']:.0f}" if result else "-" for result in found]
        rows.append([shown, *(cell for result in found for cell in _timed(result)), f"{', '.join(starts)} s"])
    heads = [""]
    for named in NETS.values():
        heads += [named, "ratio to the loop"]
    made = table([*heads, "until the first round ends"], rows)
    return f"{made}\n\n{_sources(files)}\n\n{_compared(files)}"


def _sources(files: Mapping[str, Any]) -> str:
    """The files of a table, by the commit and the machine that made them."""
    by_origin: dict[str, list[str]] = {}
    for name, read in files.items():
        made = f"commit {read['git_commit'][:7]}, {read['processor']}, {read['cores']} cores"
        by_origin.setdefault(made, []).append(f"`{name}.json`")
    places = "; ".join(f"{', '.join(names)} ({origin})" for origin, names in by_origin.items())
    return f"From `results/benchmark`: {places}. Each file has its command."


def _compared(files: Mapping[str, Any]) -> str:
    """Ratios of `auto` to others, and how far the models are from the loop's, in sentences."""

    def over(name: str, of: Mapping[str, Any]) -> str:
        results = [read["nets"][net] for net, read in of.items()]
        return ", ".join(
            f"{one['auto']['summary']['ratio'][1] / one[name]['summary']['ratio'][1]:.2f}" for one in results
        )

    def later(of: Mapping[str, Any]) -> str:
        return f"{of['auto']['to_first_round_s'] - of['serial']['to_first_round_s']:.0f}"

    tiny = files["tiny"]["nets"]["tiny"]
    apart = max(result["difference"] for name, result in tiny.items() if name != "pfl")
    starts = ", ".join(later(read["nets"][net]) for net, read in files.items())
    limits = {net: benchmark(f"limit_{net}") for net in files}
    return (
        f"In the order of the networks, `auto`'s rounds take {over('pfl', files)} times as long as pfl's, and "
        f"{over('serial', files)} times as long as `serial`'s (ratios of the medians to the loop). "
        "The limit of the table multiplies matrices by torch's own choice; "
        f"`auto`'s rounds take {over('limit', limits)} times as long as those of a limit with the executors' kernels "
        f"(`limit_*.json`, commit {limits['tiny']['git_commit'][:7]}). "
        f"Its first round ends {starts} s later than `serial`'s. In float64 all variants give the loop's model on the "
        f"first network: they differ by at most {apart:.0e} of the largest change of a parameter, and pfl by "
        f"{tiny['pfl']['difference']:.0e}, as its updates are float32."
    )


def alternatives() -> str:
    """README's comparison: what each is, and the figures that all were measured for."""
    files = {net: benchmark(net) for net in NETS}
    names = ["auto", "flower", "pfl", "fedlab"]

    def row(head: str, of: Callable[[Mapping[str, Any]], str], net: str) -> list[str]:
        results = [files[net]["nets"][net].get(name) for name in names]
        return [head, *(of(result) if result else "-" for result in results), "-"]

    def ratio(result: Mapping[str, Any]) -> str:
        return f"{result['summary']['ratio'][1]:.2f}"

    vgg16 = benchmark("steps")["results"]["vgg16"]
    own, notebook = (f"{vgg16[variant]['ratio']:.2f}" for variant in ("fedpara 0.1", "einsum 0.1"))
    what = [
        "FedPara and pFedPara, from simulation to real clients",
        "a framework for real clients, with a simulation on Ray",
    ]
    rows = [
        ["what it is", *what, "a simulator", "a simulator", "a notebook: one layer, no training"],
        *(row(f"a round with {named}, relative to a hand-written loop", ratio, net) for net, named in NETS.items()),
        row("seconds until the first round ends, smallest network", lambda r: f"{r['to_first_round_s']:.0f}", "tiny"),
        ["a step of FedPara's VGG16 at γ = 0.1, relative to dense", own, "-", "-", "-", notebook],
    ]
    heads = ["", "this project (`executor=auto`)", "Flower 1.41", "pfl-research 0.6", "FedLab 1.3", "the authors' code"]
    return table(heads, rows)


def _timed(result: Mapping[str, Any] | None) -> list[str]:
    """Median seconds, and the median ratio with its quartiles; empty where it was not measured."""
    if result is None:
        return ["", ""]
    (_, seconds, _), (low, ratio, high) = result["summary"]["seconds"], result["summary"]["ratio"]
    spread = "" if low == high == 1 else f" ({low:.2f} to {high:.2f})"
    return [f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.2f} s", f"{ratio:.2f}{spread}" if spread else "1"]


def cluster() -> str:
    """Seconds of a round on a Ray cluster of two cores."""
    read = benchmark("ray")
    rows = []
    for name, shown in CLUSTER.items():
        tiny, cnn = (read["nets"][net][name] for net in ("tiny", "cnn"))
        starts = ", ".join(f"{one['to_first_round_s']:.0f}" for one in (tiny, cnn))
        rows.append([shown, f"{tiny['summary']['seconds'][1]:.3f}", f"{cnn['summary']['seconds'][1]:.2f}", starts])
    heads = ["", "tiny: s a round", "cnn: s a round", "until the first round ends, s"]
    return f"{table(heads, rows)}\n\n{_sources({'ray': read})}"


def steps() -> str:
    """FedPara's steps beside dense ones, for whole networks and single layers."""
    results, jacobian = benchmark("steps")["results"], benchmark("jacobian")["results"]["vgg16"]
    rows = []
    for name, shown in {"vgg16": "VGG16", "resnet18": "ResNet18", "char_lstm": "LSTM"}.items():
        of = results[name]
        rows.append([f"{shown}: time", *_step_times(of)])
        if name == "vgg16":
            cells = [_ratio(jacobian[f"jacobian {gamma}"]) for gamma in (0.1, 0.4)]
            rows.append(["with the Jacobian correction", "", cells[0], "", cells[1], ""])
        dense = of["dense"]
        rest = [
            f"{of[variant]['operators']:,}, {of[variant]['peak_mb'] / dense['peak_mb']:.2f}"
            for variant in STEP_VARIANTS
        ]
        rows.append(["operators, peak memory", f"{dense['operators']:,}, {dense['peak_mb']:.0f} MB", *rest])
    rows += [[shown, *_step_times(results[name], spread=False)] for name, shown in LAYERS.items()]
    heads = ["", "dense", "γ = 0.1", "notebook's einsum", "γ = 0.4", "einsum"]
    at, corrected = benchmark("steps")["git_commit"], benchmark("jacobian")["git_commit"]
    source = (
        f"From `results/benchmark/steps.json` (VGG16 at commit {at['vgg16']}, the others at {at['others']}) and "
        f"`jacobian.json` (commit {corrected})."
    )
    return f"{table(heads, rows)}\n\n{source}"


def precisions() -> str:
    """VGG16's steps on a processor with bfloat16, by the precision of products."""
    rows = []
    for name, shown in {"steps_highest": "`highest`", "steps_medium": "`medium`"}.items():
        of = benchmark(name)["results"]["vgg16"]
        corrected = [_ratio(of[f"jacobian {gamma}"]) for gamma in (0.1, 0.4)]
        plain = [_ratio(of[f"fedpara {gamma}"]) for gamma in (0.1, 0.4)]
        rows.append([shown, f"{1e3 * of['dense']['seconds']:,.0f} ms", *plain, *corrected])
    heads = ["`matmul_precision`", "dense", "γ = 0.1", "γ = 0.4", "γ = 0.1, corrected", "γ = 0.4, corrected"]
    return f"{table(heads, rows)}\n\nFrom `results/benchmark/steps_highest.json` and `steps_medium.json`."


STEP_VARIANTS = ["fedpara 0.1", "einsum 0.1", "fedpara 0.4", "einsum 0.4"]


def _step_times(of: Mapping[str, Any], spread: bool = True) -> list[str]:
    dense = f"{1e3 * of['dense']['seconds']:,.0f} ms"
    ratios = [_ratio(of[v]) if spread and v.startswith("fedpara") else f"{of[v]['ratio']:.2f}" for v in STEP_VARIANTS]
    return [dense, *ratios]


def _ratio(row: Mapping[str, float]) -> str:
    return f"{row['ratio']:.2f} ({row['lower']:.2f} to {row['upper']:.2f})"


def server() -> str:
    """The cost of a million clients, as `benchmarks/server.py` prints it."""
    from server import tables

    read = benchmark("server")
    return "\n".join(tables(read["units"], read["options"])) + "\n\nFrom `results/benchmark/server.json`."


MAKERS: dict[str, Callable[[], str]] = {
    "headline": headline, "claims": claims, "alternatives": alternatives, "cifar10": cifar10, "budget": budget,
    "gap": gap, "ranks": ranks, "frontier-femnist": partial(frontier, "frontier_femnist", 0.55),
    "frontier-cifar10": partial(frontier, "frontier_cifar10", 0.5), "fine-tuning": fine_tuning,
    "algorithms": algorithms, "personalisation": personalisation, "privacy": privacy, "shakespeare": shakespeare,
    "initialisation": initialisation, "table-4": table_4, "cifar100": cifar100, "rounds": rounds, "cluster": cluster,
    "steps": steps, "precisions": precisions, "server": server,
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
