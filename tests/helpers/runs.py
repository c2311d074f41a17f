"""What runs leave behind."""

import csv
import json
import subprocess
import sys
from pathlib import Path


def rows(folder):
    if not (folder / "metrics.csv").is_file():
        return []
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def rows_without_times(folder):
    """metrics.csv, but for what differs between two runs of the same seed."""
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "cost/round"))} for row in rows(folder)]


def of_wandb(folder, run_id):
    """An offline run, by `wandb leet inspect --json`: its records by type, and its summary."""
    (run,) = (folder / "wandb").glob(f"offline-run-*-{run_id}")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json"]
    records = subprocess.check_output([*command, str(run)], text=True, timeout=60).splitlines()
    summary = json.loads(subprocess.check_output([*command, "--summary", str(run)], text=True, timeout=60))
    return [json.loads(record) for record in records], summary
