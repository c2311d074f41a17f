"""One command that proves the CUDA path: `python benchmarks/gpu_proof.py scale=full out=results/gpu`.

Its parts are the tests marked gpu, steps a second, the benchmark of pfl-research, and the paper's CIFAR-10 run. Each
has a process of its own, which is killed when its time is up. Its results go into a file of `out`; the same command
again repeats only parts that failed, or that another commit, scale or device made. At the end proof.json and README.md
have all of them. `scale=tiny` does the same in small, also on a CPU. `commit=` is for a copy of the source without git.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch

from fedpara.callbacks.run_folder import git_commit
from fedpara.files import write_atomically
from rounds import machine

PARTS = {  # the program, and the seconds after which it is killed
    "tests": ("gpu_programs.py", 90), "steps": ("gpu_measure.py", 120), "pfl": ("gpu_measure.py", 90),
    "paper": ("gpu_programs.py", 150),
}  # fmt: skip
SCALES = ("full", "tiny")
OPTIONS = {"scale": "full", "out": "results/gpu", "commit": ""}


def read_options(arguments: list[str]) -> dict[str, str]:
    """`key=value` arguments over the defaults.

    Raises:
        ValueError: an unknown key or value; one line.
    """
    options = dict(OPTIONS)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in options:
            raise ValueError(f"{key}: no such option; allowed: {', '.join(options)}")
        options[key] = value
    if options["scale"] not in SCALES:
        raise ValueError(f"scale={options['scale']}: must be one of {', '.join(SCALES)}")
    if options["scale"] == "full" and not torch.cuda.is_available():
        raise ValueError("scale=full: there is no GPU; take scale=tiny")
    return options


def commit() -> str | None:
    """The commit of the source, with `-dirty` if files differ other than results; None outside a checkout."""
    if (name := git_commit()) is None or not name.endswith("-dirty"):
        return name
    same = subprocess.run(["git", "-C", ROOT, "diff", "--quiet", "HEAD", "--", ".", ":!results"]).returncode == 0
    return name.removesuffix("-dirty") if same else name


def about(given: str) -> dict[str, Any]:
    """The machine, the versions and the command."""
    facts = machine() | {"command": " ".join(["python", *sys.argv])}
    facts |= {"git_commit": given or commit(), "gpu": None, "driver": None}
    facts |= {name: version(name) for name in ("torch", "pytorch-lightning")}
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def run_part(name: str, scale: str) -> dict[str, Any]:
    """A part's results and seconds; the last line that it printed is its error if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "results.json", Path(folder) / "log"
        program, seconds = PARTS[name]
        command = [sys.executable, str(ROOT / "benchmarks" / program), name, scale, str(seconds), str(file)]
        start, error = time.perf_counter(), ""
        with log.open("w") as printed:
            process = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=printed, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            error = f"did not end within {seconds} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also the processes that it started
            process.wait()
        taken = {"seconds": round(time.perf_counter() - start, 1)}
        lines = log.read_text().strip().splitlines()[-100:] or ["nothing printed"]
        if error or not file.is_file():
            return taken | {"error": error or lines[-1], "log": lines}
        results = json.loads(file.read_text())
        return taken | results | ({"log": lines} if "error" in results else {})


def finished(file: Path, stamp: dict[str, Any]) -> dict[str, Any] | None:
    """The results in a part's file, unless it failed, was made elsewhere, or its source is not known exactly."""
    part = json.loads(file.read_text()) if file.is_file() else {}
    known = stamp["git_commit"] and not stamp["git_commit"].endswith("-dirty")
    return part if known and part.get("stamp") == stamp and "error" not in part else None


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """A table in GitHub's markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def page(report: dict[str, Any]) -> str:
    """What was measured, in words and tables."""
    facts, parts = report["about"], report["parts"]
    gpu = facts["gpu"] or "none: nothing here ran on a GPU, and no step was captured"
    machine_rows = [
        ["GPU", gpu], ["driver", facts["driver"] or ""], ["processor", f"{facts['processor']}, {facts['cores']} cores"],
        ["torch, Lightning, Python", f"{facts['torch']}, {facts['pytorch-lightning']}, {facts['python']}"],
        ["command", f"`{facts['command']}`"], ["scale", report["scale"]], ["commit", facts["git_commit"]],
        ["date", facts["date"]],
    ]  # fmt: skip
    part_rows = [[name, part["seconds"], part.get("error", "done")] for name, part in parts.items()]
    texts = [
        "# The CUDA path, measured",
        table(["", ""], machine_rows),
        table(["part", "seconds", "result"], part_rows),
    ]
    for name, part in parts.items():
        if set(part) - {"stamp", "seconds", "error", "log"}:  # some results, also of a part that failed
            texts.append(SECTIONS[name](part))
    return "\n\n".join(texts) + "\n"


def _tests(part: dict[str, Any]) -> str:
    rows = [[part["passed"], len(part["failed"]), part["skipped"]]]
    return "## Tests marked gpu\n\n" + table(["passed", "failed", "skipped (no GPU)"], rows)


def _steps(part: dict[str, Any]) -> str:
    rows = [
        [
            row["precision"], row["variant"], row["way"], row.get("captured", ""), row.get("clients_at_once", ""),
            f"{row['steps_per_s']:.1f}" if "steps_per_s" in row else "",
            f"{row['peak_mb']:.0f}" if row.get("peak_mb") else "", row.get("error", row.get("note", "")),
        ]
        for row in part["rows"]
    ]  # fmt: skip
    columns = ["precision", "network", "way", "captured", "clients at once", "client steps a second", "peak MB", ""]
    return "## Steps\n\nClient steps through the executors, with copies of each client's model.\n\n" + table(
        columns, rows
    )


def _pfl(part: dict[str, Any]) -> str:
    rows = [
        [
            row["variant"], f"{1 / row['round_s']:.2f}" if "round_s" in row else "", len(row["rounds"]) + 1,
            f"{100 * row['accuracy']:.1f}" if "accuracy" in row else "", row.get("error", row.get("note", "")),
        ]
        for row in part["rows"]
    ]  # fmt: skip
    columns = ["", "rounds a second", "rounds", "accuracy after them, %", ""]
    return "## pfl-research's CIFAR-10 benchmark, rounds interleaved\n\n" + table(columns, rows)


def _paper(part: dict[str, Any]) -> str:
    rows = [[len(part["rounds"]), f"{100 * part['accuracy']:.2f}", f"{part['round_s']:.2f}"]]
    columns = ["rounds", "accuracy after them, %", "seconds a round"]
    return "## The paper's CIFAR-10 IID run (`experiment=fedpara_cifar10`)\n\n" + table(columns, rows)


SECTIONS = {"tests": _tests, "steps": _steps, "pfl": _pfl, "paper": _paper}


def main(arguments: list[str]) -> None:
    """Run the parts that are not finished; write the page; exit with 1 if a part failed."""
    try:
        options = read_options(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    facts, out = about(options["commit"]), Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    stamp = {"git_commit": facts["git_commit"], "scale": options["scale"], "device": facts["gpu"] or facts["processor"]}
    parts: dict[str, Any] = {}
    for name, (_, seconds) in PARTS.items():
        file = out / f"{name}.json"
        if (part := finished(file, stamp)) is None:
            print(f"{name}: at most {seconds} s", file=sys.stderr)
            part = {"stamp": stamp} | run_part(name, options["scale"])
            write_atomically(file, json.dumps(part, indent=1).encode())
        parts[name] = part
    report = {"about": facts, "scale": options["scale"], "parts": parts}
    write_atomically(out / "proof.json", json.dumps(report, indent=1).encode())
    write_atomically(out / "README.md", page(report).encode())
    print(page(report))
    failed = [f"{name}: {part['error']}" for name, part in parts.items() if "error" in part]
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main(sys.argv[1:])
