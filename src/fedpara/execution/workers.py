"""Worker processes with an executor each, and the memory that they share with this process."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import active_children, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized

import torch
import torch.multiprocessing
from torch import Tensor

from fedpara.errors import signal_name
from fedpara.execution.base import ClientTask, Executor, MakeExecutor
from fedpara.execution.dispatch import Outcome, WorkerDied, portable, sendable
from fedpara.execution.training import LocalTraining
from fedpara.execution.transfer import Place, Room, dump, load, look

log = logging.getLogger(__name__)
MESSAGE_BYTES = 2**16  # for a result without its tensors


class Workers:
    """A pool of worker processes; a process starts only when there is work for it.

    The shared memory holds, one after the other: the model and the examples; the tensors that all tasks of a round
    share; and a slot for each piece of work, with the tensors of its tasks and then of its results. Only a few bytes,
    which say where to read, go through the pool's pipes.

    Args:
        make: makes an executor.
        training: the argument of `make`.
        number: number of processes.
        threads: threads of each process.
        num_devices: number of GPUs, which the workers take in turn; 0: none.
        chunk: largest number of tasks in a piece of work.
        state_bytes: size of a model's state.

    Raises:
        ValueError: `make` or `training` cannot be sent to another process, or there is not enough shared memory.
    """

    die_together = True

    def __init__(
        self,
        make: MakeExecutor,
        training: LocalTraining,
        number: int,
        threads: int,
        num_devices: int,
        chunk: int,
        state_bytes: int,
    ) -> None:
        own = Room(0, sys.maxsize)
        model = sendable((make, training.without_data()), own, "processes")
        shared = Room(own.end, sys.maxsize)
        data = sendable(training.datamodule, shared, "processes")
        self._broadcast = shared.end, shared.end + 2 * state_bytes
        slot_bytes, begin = chunk * (state_bytes + MESSAGE_BYTES), self._broadcast[1]
        self._free = [(begin + i * slot_bytes, begin + (i + 1) * slot_bytes) for i in range(2 * number)]
        self._memory = _shared_memory(self._free[-1][1])
        own.write(self._memory)
        shared.write(self._memory)
        for tensor, place in shared.laid.values():
            if tensor.device.type == "cpu":
                tensor.data = look(place, self._memory)  # so that this process has the examples only there
        self._capacity = len(self._free)
        self._slots: dict[Future[Place | bytes], tuple[int, int]] = {}
        self._common = Room(*self._broadcast)
        self.size = number
        self._given = _Given(model, data, self._memory, threads, num_devices, torch.get_float32_matmul_precision())
        self._context: BaseContext = torch.multiprocessing.get_context("spawn" if num_devices else "forkserver")
        self._start()

    def _start(self) -> None:
        if self._context.get_start_method() == "forkserver":
            _start_forkserver()
        lifeline, self._lifeline = self._context.Pipe(duplex=False)
        given = lifeline, self._context.Value("i", 0), self._given
        self._pool = ProcessPoolExecutor(self.size, self._context, _begin, given)
        self._processes: set[BaseProcess] = set()

    def close(self) -> None:
        """End all workers at once, even in the middle of work."""
        self._lifeline.close()
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            process.join()  # the pool does not, if one died while another was started (CPython 3.11)

    def capacity(self, work: int) -> int:
        """Number of pieces of work that can be in training or waiting."""
        return self._capacity

    def broadcast(self, task: ClientTask) -> None:
        """Write once the tensors that this task shares, by identity, with later ones."""
        self._common = Room(*self._broadcast)
        dump(task, self._common)
        self._common.write(self._memory)

    def submit(self, tasks: list[ClientTask]) -> Future[Place | bytes]:
        """Start to train the tasks; at most `capacity` pieces of work can be submitted."""
        slot = self._free.pop()
        try:
            future = self._send(tasks, slot)
        except BrokenProcessPool:
            log.warning("a worker process died (%s); the clients in training are trained again", self._death())
            self._start()
            future = self._send(tasks, slot)
        self._slots[future] = slot
        return future

    def _send(self, tasks: list[ClientTask], slot: tuple[int, int]) -> Future[Place | bytes]:
        room = Room(*slot, known=self._common.laid)
        data = dump(tasks, room)
        room.write(self._memory)
        with _without_interruption():
            if len(self._processes) == self.size:
                return self._pool.submit(_train, data, slot)
            before = set(active_children())
            future = self._pool.submit(_train, data, slot)  # may start a process
            self._processes |= set(active_children()) - before
        return future

    def _death(self) -> str:
        """The cause of a worker's death, after all workers have ended (until then they could still write).

        The pool's thread waits for the same processes. If two threads ask a forkserver's process for its exit status,
        one of them gets 255 (CPython's `popen_forkserver.Popen.poll`), so that thread must end first.
        """
        self.close()
        codes = {process.exitcode or 0 for process in self._processes} - {0, -signal.SIGTERM}  # the pool sends SIGTERM
        causes = sorted(signal_name(-code) if code < 0 else f"exit status {code}" for code in codes)
        hint = " (was memory short?)" if "SIGKILL" in causes else ""
        return (", ".join(causes) or "unknown cause") + hint

    def wait(self, work: Collection[Future[Place | bytes]], block: bool) -> Iterable[Future[Place | bytes]]:
        """The finished pieces of work; with `block`, wait for one at least."""
        return wait(work, timeout=None if block else 0, return_when=FIRST_COMPLETED).done

    def outcomes(self, future: Future[Place | bytes]) -> list[Outcome]:
        """The outcomes of the tasks.

        Raises:
            WorkerDied: a worker died, and the work of all is lost.
            Exception: the worker's executor could not be made, or raised an error.
        """
        slot = self._slots.pop(future)
        try:
            found = future.result()
            data = found if isinstance(found, bytes) else look(found, self._memory).numpy().tobytes()
            return load(data, self._memory, copy=True)
        except BrokenProcessPool as error:
            raise WorkerDied(self._death()) from error
        finally:
            self._free.append(slot)


def _shared_memory(num_bytes: int) -> Tensor:
    try:
        return torch.empty(num_bytes, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise ValueError(
            f"executor=processes: {num_bytes / 2**20:.0f} MiB of shared memory cannot be allocated ({error}); enlarge "
            "/dev/shm (docker run --shm-size), or take executor=serial"
        ) from error


def _start_forkserver() -> None:
    """Start a process that has done the imports; workers are forked from it in 0.1 s instead of seconds."""
    resource_tracker.ensure_running()  # started later, it would let signals through again
    forkserver.set_forkserver_preload([__name__])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # in Python 3.11 the server does not get sys.path otherwise
    try:
        with _without_interruption():
            forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)


@contextmanager
def _without_interruption() -> Iterator[None]:
    """Block SIGINT in processes started within this: a terminal sends it to all, but only this process should act."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# the code below runs in the worker


@dataclass(frozen=True)
class _Given:
    """The arguments of every worker; see `Workers`."""

    model: bytes
    data: bytes
    memory: Tensor
    threads: int
    num_devices: int
    matmul_precision: str


_given: _Given
_device: int


def _begin(lifeline: Connection, turn: "Synchronized[int]", given: _Given) -> None:
    global _given, _device
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(given.threads)
    torch.set_float32_matmul_precision(given.matmul_precision)
    with turn.get_lock():
        _given, _device = given, turn.value
        turn.value += 1


def _end_with(lifeline: Connection) -> None:
    """Wait until the other process closes the pipe or dies; nothing is ever sent through it."""
    lifeline.poll(None)
    os._exit(0)


@cache
def _executor() -> Executor:
    """This worker's executor, made with its first task, so that an error in making it reaches the other process."""
    make, values = load(_given.model, _given.memory, copy=True)
    datamodule = load(_given.data, _given.memory, copy=False)
    training = LocalTraining(datamodule=datamodule, **values)
    if _given.num_devices and not training.names_a_device:
        training = replace(training, options={**training.options, "devices": [_device % _given.num_devices]})
    executor: Executor = make(training)
    datamodule.to(executor.device)
    return executor


def _train(data: bytes, slot: tuple[int, int]) -> Place | bytes:
    """The place of the outcomes; so short a message is written as a whole or not at all, even if a worker is killed."""
    tasks = load(data, _given.memory, copy=True)
    room = Room(*slot)
    outcomes = dump([portable(outcome) for outcome in _executor().run(tasks)], room)
    place = room.place(torch.frombuffer(bytearray(outcomes), dtype=torch.uint8))
    room.write(_given.memory)
    return place or outcomes
