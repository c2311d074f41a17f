"""Executors: where and how a round's clients are trained."""

from fedpara.execution.auto import AutoExecutor
from fedpara.execution.base import ClientFailure, ClientTask, Executor, LocalResult
from fedpara.execution.faults import FaultInjection
from fedpara.execution.processes import ProcessesExecutor
from fedpara.execution.ray import RayExecutor
from fedpara.execution.serial import SerialExecutor
from fedpara.execution.tiers import TieredExecutor, tiered
from fedpara.execution.training import LocalTraining
from fedpara.execution.vectorized import VectorizedExecutor

__all__ = [
    "AutoExecutor",
    "ClientFailure",
    "ClientTask",
    "Executor",
    "FaultInjection",
    "LocalResult",
    "LocalTraining",
    "ProcessesExecutor",
    "RayExecutor",
    "SerialExecutor",
    "TieredExecutor",
    "VectorizedExecutor",
    "tiered",
]
