"""Callbacks of a run: progress, checkpoints, the files of the run folder, loggers."""

from fedpara.callbacks.audit import Audit
from fedpara.callbacks.checkpoint import Checkpoint, restore
from fedpara.callbacks.client_table import ClientTable
from fedpara.callbacks.logging import LoggerForwarding
from fedpara.callbacks.partition_picture import PartitionPicture
from fedpara.callbacks.progress import ProgressDisplay
from fedpara.callbacks.run_folder import RunFolder
from fedpara.callbacks.wandb import FederationWandbLogger

__all__ = [
    "Audit", "Checkpoint", "ClientTable", "FederationWandbLogger", "LoggerForwarding", "PartitionPicture",
    "ProgressDisplay", "RunFolder", "restore",
]  # fmt: skip
