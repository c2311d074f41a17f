"""What happens beside a run: progress, checkpoints, the run folder's files, loggers."""

from fedpara.callbacks.checkpoint import Checkpoint, restore
from fedpara.callbacks.logging import LoggerForwarding
from fedpara.callbacks.partition_picture import PartitionPicture
from fedpara.callbacks.progress import ProgressDisplay
from fedpara.callbacks.run_folder import RunFolder

__all__ = [
    "Checkpoint", "FederationWandbLogger", "LoggerForwarding", "PartitionPicture", "ProgressDisplay", "RunFolder",
    "restore",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """The W&B logger when it is asked for: W&B is slow to import, and not every run uses it."""
    if name != "FederationWandbLogger":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedpara.callbacks.wandb import FederationWandbLogger

    return FederationWandbLogger
