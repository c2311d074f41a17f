"""The tables of speed, each made from files of results/benchmark."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from website.cells import RESULTS, table

BENCHMARKS = RESULTS / "benchmark"
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
