"""The names of a run in lists such as W&B's: made from its folder, and for a job also from its sweep's folder."""

import re
from pathlib import Path


def run_name(folder: str, is_job: bool) -> str:
    """The folder's name, for a job with the sweep's in front, in characters that W&B accepts in an id."""
    path = Path(folder)
    own = f"{path.parent.name}-{path.name}" if is_job else path.name
    return re.sub(r"[^\w.-]", "-", own)[-128:]


def run_title(folder: str, choices: str, is_job: bool) -> str:
    """A readable title: for a job the values that vary, for any other run its choices and its time."""
    path = Path(folder)
    title = path.name.replace("_", " ") if is_job else f"{choices} {path.name}"
    return title[:128]  # W&B's limit


def run_group(folder: str, experiment: str, is_job: bool) -> str:
    """The name of a job's sweep; for any other run its experiment."""
    return Path(folder).parent.name[-128:] if is_job else experiment
