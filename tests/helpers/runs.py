"""What runs leave behind."""

import csv
import json
import subprocess


def rows(folder):
    if not (folder / "metrics.csv").is_file():
        return []
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def rows_without_times(folder):
    """metrics.csv, but for what differs between two runs of the same seed."""
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "cost/round"))} for row in rows(folder)]


def of_wandb(folder, run_id):
    """An offline run, by what `wandb leet inspect --json` starts: its records by type, and its summary."""
    from wandb.util import get_core_path

    (run,) = (folder / "wandb").glob(f"offline-run-*-{run_id}/run-*.wandb")
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(run)]
    records = subprocess.check_output(command, text=True, timeout=60).splitlines()
    summary = json.loads(subprocess.check_output([*command, "--summary"], text=True, timeout=60))
    return [json.loads(record) for record in records], summary
