"""Executors: where and how a round's clients are trained."""

from fedpara.execution.base import ClientTask, Executor, LocalResult
from fedpara.execution.serial import SerialExecutor

__all__ = ["ClientTask", "Executor", "LocalResult", "SerialExecutor"]
