"""What a run is called in a list: by its folder, and as the job of a sweep by the sweep's too."""

import re
from pathlib import Path


def run_name(folder: str, is_job: bool) -> str:
    """A run's own name: its folder's, with the sweep's in front of a job's, in letters that W&B takes for an id."""
    path = Path(folder)
    own = f"{path.parent.name}-{path.name}" if is_job else path.name
    return re.sub(r"[^\w.-]", "-", own)[-128:]


def run_title(folder: str, choices: str, is_job: bool) -> str:
    """What a person reads in a list: of a sweep's job what varies, of any other what was chosen and when."""
    path = Path(folder)
    title = path.name.replace("_", " ") if is_job else f"{choices} {path.name}"
    return title[:128]  # what W&B takes


def run_group(folder: str, experiment: str, is_job: bool) -> str:
    """The sweep of a job; of any other run the experiment."""
    return Path(folder).parent.name[-128:] if is_job else experiment
