"""Parts of benchmarks/gpu_proof.py that start a program: `python benchmarks/gpu_programs.py tests tiny 90 tests.json`.

A part is a function of its scale (`tiny` or full) and of the time by `time.monotonic` at which it has to end. It
returns values for JSON; those of a part that failed have an `error`, one line.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from fedpara.runs import METRICS, read_rows

Results = dict[str, Any]
Part = Callable[[bool, float], Results]
SOFT = 0.8  # share of a part's seconds after which it starts nothing more
SIZES = {  # of the paper's run, by `tiny`
    False: ["trainer=gpu"],
    True: [
        "trainer=cpu", "trainer.max_epochs=1", "data=mnist_small", "data.max_train=64", "data.max_test=64",
        "model=vgg_small", "model.network.stages=[[4],[8],[8],[8]]", "federation.num_clients=4",
        "federation.clients_per_round=2", "federation.num_rounds=2",
    ],
}  # fmt: skip


def tests(tiny: bool, end: float) -> Results:
    """The tests that are marked gpu; without a GPU pytest skips them."""
    marked = sorted({path.parent for path in (ROOT / "tests").rglob("*.py") if "mark.gpu" in path.read_text()})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-p", "no:cacheprovider", "--continue-on-collection-errors", "-m", "gpu", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", "pytest", *options, *marked], cwd=ROOT)
        (suite,) = ElementTree.parse(report).getroot()
    failed = [
        case.attrib["name"] for case in suite.iter("testcase") if {"failure", "error"} & {part.tag for part in case}
    ]
    number, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    numbers = {"passed": number - len(failed) - skipped, "skipped": skipped, "failed": failed}
    return numbers | failures([{"error": f"{name} failed"} for name in failed])


def paper(tiny: bool, end: float) -> Results:
    """The paper's CIFAR-10 IID run by src/train.py, for as many rounds as fit."""
    until = time.time() + end - time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "experiment=fedpara_cifar10", "executor.whole_epochs=true", "logger=none", *SIZES[tiny],
            "callbacks.checkpoint=null", "callbacks.partition_picture=null", "callbacks.progress=null",
            "+callbacks.deadline._target_=ours.Deadline", f"+callbacks.deadline.at={until}",
            f"hydra.run.dir={folder}/run",
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'benchmarks'}{os.pathsep}{ROOT / 'src'}"}
        done = subprocess.run([sys.executable, ROOT / "src/train.py", *arguments], env=environment)
        if done.returncode:
            sys.exit(done.returncode)  # its last line says why
        rows = read_rows(Path(folder) / "run" / METRICS)
    columns = ("round", "test/acc", "train/loss", "time/round_s")
    kept = [{column: float(row[column]) for column in columns} for row in rows]
    later = [row["time/round_s"] for row in kept[1:] or kept]  # the first round captures
    return {"rounds": kept, "round_s": statistics.median(later), "accuracy": kept[-1]["test/acc"]}


def failures(rows: list[Results]) -> dict[str, str]:
    """The `error` of a part from those of its rows, each with the texts that name the row; nothing if none failed."""
    wrong = [", ".join(value for value in row.values() if isinstance(value, str)) for row in rows if "error" in row]
    return {"error": "; ".join(wrong)} if wrong else {}


def main(parts: dict[str, Part], name: str, scale: str, seconds: str, file: str) -> None:
    """Run one part and write its results."""
    results = parts[name](scale == "tiny", time.monotonic() + SOFT * float(seconds))
    Path(file).write_text(json.dumps(results))


if __name__ == "__main__":
    main({"tests": tests, "paper": paper}, *sys.argv[1:])
