"""The cost of a round with very many clients for their server: `python benchmarks/server.py [key=value ...]`.

It times the server's work for a round, for an upload and for an idle client, on states of ResNet50's size. From that it
computes a round of `cohort` of `clients` for an assumed link, memory and disk (OPTIONS). The first wall is the one of
time, memory and disk that is exhausted first. With ray it also measures the gain of a second aggregator.
"""

import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch
from torch import nn

import scale
from fedpara.callbacks.checkpoint import Progress
from fedpara.communication import Cast, Link, StochasticUniform
from fedpara.nn import Dense, FedPara, PFedPara, factorize
from fedpara.sampling import cohort, derive_seed
from fedpara.state import State, is_finite, layout_of, num_elements, read_state, weighted_mean
from fedpara.storage import ClientStates, write_tensors

OPTIONS = {
    "clients": 1_000_000, "cohort": 10_000, "gamma": 0.1, "width": 64, "repeats": 5, "threads": 1,
    "federation": 1, "uploads": 64, "out": "",  # federation=0: no small run; uploads=0: no ray; out: file for the JSON
    # assumed: the server's network card, the site's link, memory, disk, and the longest time of a round
    "nic_gbit": 10.0, "site_gbit": 100.0, "memory_gb": 256.0, "disk_tb": 10.0, "round_s": 600.0,
    # assumed: a client's work, and the speed of one GPU
    "images": 500, "epochs": 5, "images_per_s": 2500.0,
}  # fmt: skip
RECIPES: dict[str, Callable[[float], Any]] = {
    "dense": lambda gamma: Dense(),
    "FedPara": lambda gamma: FedPara(gamma=gamma),
}
LINKS = {
    "fp32": Link(Cast(), Cast()),
    "fp16": Link(Cast("float16"), Cast("float16")),
    "fedpaq": Link(StochasticUniform(8), Cast()),
}
KEPT_GB = 1.0  # the default of callbacks.checkpoint.memory_gb
MEANINGS = {  # of what is measured once: words, factor, unit
    "cohort_s": ("draw a cohort", 1e3, " ms"),
    "seeds_s": ("draw its seeds", 1e3, " ms"),
    "versions_s": ("write the versions of all clients' states as JSON", 1e3, " ms"),
    "versions_bytes": ("their size", 1e-6, " MB"),
    "start_s": ("start a run of all clients with four examples each", 1, " s"),
    "run_mb": ("its memory", 1, " MB"),
    "run_round_s": ("a round of it", 1, " s"),
    "run_cohort": ("clients in that round", 1, ""),
    "put_100mb_s": ("put 100 MB into Ray's store", 1e3, " ms"),
    "get_100mb_s": ("get and read them", 1e3, " ms"),
    "uploads": ("uploads of the dense model for actors to add up", 1, ""),
    "one_elapsed_s": ("one actor, wall time", 1, " s"),
    "two_elapsed_s": ("two actors and the sum of their means, wall time", 1, " s"),
    "one_processor_s": ("one actor, processor time", 1, " s"),
    "two_processor_s": ("the slower of two actors, and the sum, processor time", 1, " s"),
}
ROWS = [("dense", "fp32"), ("FedPara", "fp32"), ("FedPara", "fedpaq")]


def resnet50(width: int = 64) -> nn.Module:
    """The layers of torchvision's ResNet50 (He et al. 2016) by name, for counting only; they cannot be run."""
    layers = nn.ModuleDict()

    def convolution(name: str, inputs: int, outputs: int, kernel: int) -> None:
        layers[f"{name}_conv"] = nn.Conv2d(inputs, outputs, kernel, bias=False)
        layers[f"{name}_norm"] = nn.BatchNorm2d(outputs)
        del layers[f"{name}_norm"].num_batches_tracked  # a counter that the models of this package do not have

    convolution("stem", 3, width, 7)
    channels = width
    for stage, blocks in enumerate([3, 4, 6, 3]):
        inner = width * 2**stage
        for block in range(blocks):
            name = f"stage{stage + 1}_{block + 1}"
            convolution(f"{name}_1", channels, inner, 1)
            convolution(f"{name}_2", inner, inner, 3)
            convolution(f"{name}_3", inner, 4 * inner, 1)
            if not block:
                convolution(f"{name}_short", channels, 4 * inner, 1)
            channels = 4 * inner
    layers["output"] = nn.Linear(channels, 1000)
    return layers


def seconds(function: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.process_time) -> float:
    """Median time; processor time, the default, depends least on other processes on the machine."""
    taken = []
    for _ in range(repeats):
        start = clock()
        function()
        taken.append(clock() - start)
    return statistics.median(taken)


def elapsed(function: Callable[[], Any], repeats: int) -> float:
    """Median wall time."""
    return seconds(function, repeats, time.perf_counter)


def wire(network: nn.Module, link: Link, repeats: int) -> dict[str, float]:
    """Bytes each way, and the seconds to encode the broadcast and to decode and check an upload."""
    state, link = read_state(network), link.bound_to(name for name, _ in network.named_buffers())
    trained = {name: tensor + 1e-3 * torch.randn_like(tensor) for name, tensor in state.items()}
    known, layout = {"model": state}, {"model": layout_of(state)}
    packet = link.encode_up({"model": trained}, known)

    def receive() -> None:
        is_finite(link.decode_up(packet, layout, known)["model"])

    down = link.encode_down(known)
    return {
        "down_bytes": down.num_bytes, "up_bytes": packet.num_bytes,
        "encode_s": seconds(lambda: link.encode_down(known), repeats),
        "decode_s": seconds(receive, repeats),
    }  # fmt: skip


def accumulation(state: State, repeats: int) -> float:
    """Seconds to add one more upload to the running mean."""
    one, many = (seconds(lambda n=n: weighted_mean((state, 1.0) for _ in range(n)), repeats) for n in (1, 5))  # type: ignore[misc]
    return (many - one) / 4


def storage(state: State, repeats: int) -> dict[str, float]:
    """Seconds to write and to read a client's state, to write a checkpoint, and to look at a file when pruning."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kept = ClientStates(folder / "kept", layout_of(state), 0)
        write_s = elapsed(lambda: kept.add(0, state), repeats)
        kept.keep([0])
        result = {
            "write_s": write_s,
            "read_s": elapsed(lambda: kept[0], repeats),
            "checkpoint_s": elapsed(lambda: write_tensors(folder / "checkpoint", state, {}), repeats),
        }
        others, number = ClientStates(folder / "many", {}, 0), 20_000
        others.folder.mkdir()
        for client in range(number):
            others._path(client, 1).touch()
            others.versions[client] = 1
        result["prune_s"] = elapsed(others.prune, repeats) / number
    return result


def registry(options: dict[str, Any], repeats: int) -> dict[str, float]:
    """The cost of idle clients: a cohort, its seeds, a checkpoint's versions, and a whole small run."""
    clients, chosen = options["clients"], options["cohort"]
    progress = Progress(round=1, total_bytes=1, memories=dict.fromkeys(range(clients), 1))
    result = {
        "cohort_s": seconds(lambda: cohort(0, 1, clients, chosen), repeats),
        "seeds_s": seconds(lambda: [derive_seed(0, 1, client, "local training") for client in range(chosen)], 1),
        "versions_s": seconds(progress.model_dump_json, 1), "versions_bytes": len(progress.model_dump_json()),
    }  # fmt: skip
    if options["federation"]:
        with tempfile.TemporaryDirectory() as folder:
            few = min(100, chosen)
            started, memory, taken = scale.measure(clients, few, [], Path(folder) / "run")
        result |= {"start_s": started, "run_mb": memory, "run_round_s": taken, "run_cohort": few}
    return result


class Aggregator:
    """An actor that decodes and averages uploads; it decodes the same packet again and again."""

    def __init__(self, state: State) -> None:
        torch.set_num_threads(1)
        self.state, self.codec = state, LINKS["fp32"].up_codec
        self.packet = self.codec.encode(state)

    def mean(self, number: int) -> tuple[dict[str, Any], float]:
        """The mean of `number` uploads as arrays, and the processor time in seconds."""
        start = time.process_time()
        uploads = ((self.codec.decode(self.packet, layout_of(self.state)), 1.0) for _ in range(number))
        arrays = {name: tensor.numpy() for name, tensor in weighted_mean(uploads).items()}
        return arrays, time.process_time() - start


def aggregators(state: State, uploads: int, repeats: int) -> dict[str, float]:
    """Ray: seconds to put 100 MB into its store and to get them; one actor for all uploads, compared with two.

    Times are wall time, and processor time: that of the slowest actor plus the driver's, as if each had its own core.
    """
    import ray

    warnings.filterwarnings("ignore", message=".*not writable.*")  # the arrays are only read
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    make: Any = ray.remote(num_cpus=1)(Aggregator)
    actors = [make.remote(state) for _ in range(2)]

    def together(count: int) -> tuple[float, float]:
        start, processor = time.perf_counter(), time.process_time()
        means, spent = zip(*ray.get([actor.mean.remote(uploads // count) for actor in actors[:count]]), strict=True)
        weighted_mean(({n: torch.from_numpy(a) for n, a in mean.items()}, 1.0) for mean in means)
        return time.perf_counter() - start, max(spent) + time.process_time() - processor

    together(2)  # started
    block = torch.ones(25_000_000).numpy()
    reference = ray.put(block)
    one, two = zip(*[(together(1), together(2)) for _ in range(repeats)], strict=True)
    result = {
        "put_100mb_s": elapsed(lambda: ray.put(block), repeats),
        "get_100mb_s": elapsed(lambda: float(ray.get(reference).sum()), repeats),
        "uploads": uploads,
    }
    for number, name in enumerate(("elapsed", "processor")):
        result[f"one_{name}_s"] = statistics.median(times[number] for times in one)
        result[f"two_{name}_s"] = statistics.median(times[number] for times in two)
    ray.shutdown()
    return result


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Measure everything: each network and link, idle clients, and ray."""
    repeats = options["repeats"]
    models: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        network = factorize(resnet50(options["width"]), recipe(options["gamma"]), ["output"])
        state = read_state(network)
        models[name] = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()), "values": num_elements(state),
            "finite_s": seconds(lambda s=state: is_finite(s), repeats), "accumulate_s": accumulation(state, repeats),  # type: ignore[misc]
            **storage(state, repeats), "links": {link: wire(network, LINKS[link], repeats) for link in LINKS},
        }  # fmt: skip
    personal = factorize(resnet50(options["width"]), PFedPara(gamma=options["gamma"]), ["output"])
    kept = sum(p.numel() for name, p in personal.named_parameters() if name.endswith(("x2", "y2", "t2")))
    units = {"models": models, "personal_values": kept, "registry": registry(options, repeats)}
    dense = read_state(resnet50(options["width"]))
    return units | ({"ray": aggregators(dense, options["uploads"], repeats)} if options["uploads"] else {})


def round_of(units: dict[str, Any], model: str, link: str, options: dict[str, Any], share: int = 1) -> dict[str, float]:
    """The server's cost of a round's uploads, or of 1 / `share` of them; it decodes and adds on one core."""
    made, number = units["models"][model], options["cohort"] / share
    cost = made["links"][link]
    state_bytes = 4 * made["values"]
    return {
        "down_bytes": number * cost["down_bytes"], "up_bytes": number * cost["up_bytes"],
        "network_s": 8 * number * (cost["down_bytes"] + cost["up_bytes"]) / (1e9 * options["nic_gbit"]),
        "compute_s": cost["encode_s"] + number * (cost["decode_s"] + made["accumulate_s"]),
        "memory_bytes": 3 * state_bytes + cost["down_bytes"] + 2 * cost["up_bytes"],  # model, mean, one upload; packets
    }  # fmt: skip


def kept(units: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Algorithms whose clients keep a state, the network that it belongs to, and its bytes per client."""
    yield "pFedPara, W2", "FedPara", 4 * units["personal_values"]
    for model in units["models"]:
        yield f"SCAFFOLD, {model}", model, 4 * units["models"][model]["parameters"]


def wall(shares: dict[str, float]) -> str:
    """The resource that is exhausted first, and its use relative to what is available."""
    name = max(shares, key=shares.__getitem__)
    return f"{name}, {shares[name]:.2g} x"


def tables(units: dict[str, Any], options: dict[str, Any]) -> Iterator[str]:
    """All tables in GitHub's markdown, starting with the measured units."""
    yield "| | values | link | encode | decode, check | add to the mean | down, up |\n|---|---|---|---|---|---|---|"
    for model, made in units["models"].items():
        rate = 4 * made["values"] / 1e9
        for link, cost in made["links"].items():
            taken = cost["encode_s"], cost["decode_s"], made["accumulate_s"]
            times = " | ".join(f"{1e3 * s:.0f} ms ({rate / s:.1f} GB/s)" for s in taken)
            sizes = f"{cost['down_bytes'] / 1e6:.1f}, {cost['up_bytes'] / 1e6:.1f} MB"
            yield f"| {model} | {made['values']:,} | {link} | {times} | {sizes} |"
    yield "\n| | write a client's state | read it | checkpoint | is_finite |\n|---|---|---|---|---|"
    for model, made in units["models"].items():
        row = " | ".join(f"{1e3 * made[key]:.0f} ms" for key in ("write_s", "read_s", "checkpoint_s", "finite_s"))
        yield f"| {model} | {row} |"
    yield "\n| with all clients, or on Ray | measured |\n|---|---|"
    once = units.get("registry", {}) | units.get("ray", {})
    for key in (key for key in MEANINGS if key in once):
        what, factor, unit = MEANINGS[key]
        yield f"| {what} | {factor * once[key]:,.4g}{unit} |"
    yield "\n| a round | down | up | network | one core | memory | first wall |\n|---|---|---|---|---|---|---|"
    for model, link in ROWS:
        r = round_of(units, model, link, options)
        shares = {"network": r["network_s"] / options["round_s"], "compute": r["compute_s"] / options["round_s"]}
        shares["memory"] = r["memory_bytes"] / (1e9 * options["memory_gb"])
        sizes = f"{r['down_bytes'] / 1e12:.2f} TB | {r['up_bytes'] / 1e12:.2f} TB | {r['network_s']:.0f} s"
        rest = f"{r['compute_s']:.0f} s | {r['memory_bytes'] / 1e9:.2f} GB | {wall(shares)}"
        yield f"| {model}, {link} | {sizes} | {rest} |"
    yield "\n| what clients keep | a client | on disk, all | a round's files | in memory | first wall |"
    yield "|---|---|---|---|---|---|"
    for name, model, size in kept(units):
        made = units["models"][model]
        files_s = options["cohort"] * (made["write_s"] + made["read_s"]) * size / (4 * made["values"])
        disk, memory = size * options["clients"] / 1e12, KEPT_GB + 4 * size / 1e9  # 4: of the client that answers
        shares = {"disk": disk / options["disk_tb"], "memory": memory / options["memory_gb"]}
        first = wall(shares | {"files": files_s / options["round_s"]})
        yield f"| {name} | {size / 1e6:.1f} MB | {disk:.1f} TB | {files_s:,.0f} s | {memory:.1f} GB | {first} |"
    yield "\n| aggregators | each: network, compute | server: network, compute | the site's link |\n|---|---|---|---|"
    for model, link in ROWS:
        for share in (1, 10, 100):
            yield f"| {share}, {model}, {link} | {tree(units, model, link, options, share)} |"
    client = options["images"] * options["epochs"] / options["images_per_s"]
    hours, devices = options["cohort"] * client / 3600, options["cohort"] * client / options["round_s"]
    yield f"\nTraining at {client:.1f} GPU-seconds a client: {hours:.1f} GPU-hours a round, {devices:.0f} GPUs."
    prune, name = options["clients"] * units["models"]["FedPara"]["prune_s"], units["registry"]["versions_s"]
    yield f"A checkpoint where all clients keep something: {prune:.1f} s to look for old files, {name:.1f} s for names."


def tree(units: dict[str, Any], model: str, link: str, options: dict[str, Any], share: int) -> str:
    """Seconds if `share` aggregators divide the uploads and the server adds their means in float32."""
    each, made = round_of(units, model, link, options, share), units["models"][model]
    network = 8 * share * 8 * made["values"] / (1e9 * options["nic_gbit"])
    compute = share * (made["links"]["fp32"]["decode_s"] + made["accumulate_s"])
    site = 8 * share * (each["down_bytes"] + each["up_bytes"]) / (1e9 * options["site_gbit"])
    own = f"{network:.1f} s, {compute:.1f} s" if share > 1 else "the same"
    return f"{each['network_s']:.0f} s, {each['compute_s']:.0f} s | {own} | {site:.0f} s"


def main(arguments: list[str]) -> None:
    """Measure, print and write the results."""
    options: dict[str, Any] = dict(OPTIONS)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in OPTIONS:
            raise SystemExit(f"{key}: must be one of {', '.join(OPTIONS)}")
        options[key] = type(options[key])(value)
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    units = measure(options)
    for line in tables(units, options):
        print(line, flush=True)
    if options["out"]:
        Path(options["out"]).parent.mkdir(parents=True, exist_ok=True)
        Path(options["out"]).write_text(json.dumps({"options": options, "units": units}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
