"""A network that notes which processes train it; a module of its own, so that workers import nothing else for it."""

import os
import sys
from pathlib import Path

from fedpara.models import MLP


class Noting(MLP):
    """Writes a file for each process that runs it into the folder NOTES, with whether it has a run of W&B."""

    def forward(self, images):
        (Path(os.environ["NOTES"]) / str(os.getpid())).write_text(
            str(bool(getattr(sys.modules.get("wandb"), "run", None)))
        )
        return super().forward(images)
