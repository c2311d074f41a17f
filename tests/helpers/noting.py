"""A network that notes which processes train it; a module of its own, so that workers import nothing else for it."""

import os
import sys
from pathlib import Path

from fedpara.models import MLP


class Noting(MLP):
    """Writes a file for each process that runs it into a folder, with whether the process has a run of W&B."""

    def __init__(self, sizes, notes: Path):
        super().__init__(sizes)
        self.notes = notes

    def forward(self, images):
        (self.notes / str(os.getpid())).write_text(str(bool(getattr(sys.modules.get("wandb"), "run", None))))
        return super().forward(images)
