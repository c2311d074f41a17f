"""Trains clients in parallel: tasks go to workers, longest first, and results come back in order, even if one dies."""

import pickle
import traceback
from abc import abstractmethod
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, Protocol, TypeVar

import torch

from fedpara.errors import WorkerKilled
from fedpara.execution.base import Around, ClientFailure, ClientTask, LocalResult, MakeExecutor
from fedpara.execution.training import LocalTraining
from fedpara.execution.transfer import Room, dump

Outcome = LocalResult | ClientFailure
Work = TypeVar("Work", bound=Hashable)  # a pool's handle for a piece of work
WINDOW = 8  # chunks per worker that may be in memory, waiting, in training or done


class WorkerDied(Exception):
    """A worker died and its work is lost; the message says why it died."""


class Pool(Protocol[Work]):
    """Workers that train the tasks they get.

    Attributes:
        size: number of workers, started or not.
        die_together: whether the death of one worker loses the work of all, so that the cause is not known.
    """

    size: int
    die_together: bool

    def capacity(self, work: int) -> int:
        """Number of pieces that can be in training if `work` of them are known; workers start when needed."""
        ...

    def broadcast(self, task: ClientTask) -> None:
        """Send once the tensors that this task shares, by identity, with later ones."""
        ...

    def submit(self, tasks: list[ClientTask]) -> Work:
        """Start to train the tasks; returns a handle."""
        ...

    def wait(self, work: Collection[Work], block: bool) -> Iterable[Work]:
        """The finished pieces of work; with `block`, wait until something happens."""
        ...

    def outcomes(self, work: Work) -> list[Outcome]:
        """The outcomes of the tasks.

        Raises:
            WorkerDied: the tasks are lost.
            Exception: the worker's executor could not be made, or raised an error.
        """
        ...

    def close(self) -> None:
        """End all workers at once, even in the middle of work."""
        ...


class ParallelExecutor(Around, Generic[Work]):
    """Trains a round's clients in a pool of workers, each with an executor of its own; tests models in this process.

    When a worker dies, another one trains its tasks again; after two more deaths the clients of the task fail.

    Args:
        training: settings of one client's training.
        inner: makes the executor of each worker, and one for this process.
        threads: threads of each worker.
        chunk: tasks that a worker gets at once.

    Attributes:
        name: name of the executor's yaml, for errors.
        inner: the inner executor in this process.
        workers: number of workers.

    Raises:
        ValueError: the inner executor or the data module has worker processes itself.
    """

    name: str

    def __init__(
        self,
        training: LocalTraining,
        inner: MakeExecutor,
        threads: int,
        chunk: int,
    ) -> None:
        if num_workers := training.datamodule.num_workers:
            raise ValueError(
                f"num_workers={num_workers}: must be 0 under executor={self.name}, whose workers make their own batches"
            )
        here = inner(training)
        if isinstance(here, ParallelExecutor):
            raise ValueError(f"inner={here.name}: must train in its own process, as serial does")
        super().__init__(here)
        self.make, self.threads, self.chunk = inner, threads, chunk
        self._pool: Pool[Work] | None = None

    @abstractmethod
    def _start(self) -> Pool[Work]:
        """Start the pool; called when there is a first task."""

    def close(self) -> None:
        """End the workers at once; another `run` starts new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[Outcome]:
        """Yield results in the order of the tasks; a caller that stops early also ends the workers."""
        chunks, more = _chunks(iter(tasks), self.chunk, max(1, self.workers)), True
        num_threads = torch.get_num_threads()
        jobs: deque[_Job[Work]] = deque()  # a window over the tasks, in their order, so that memory stays bounded
        pool: Pool[Work] | None = None
        try:
            torch.set_num_threads(
                self.threads
            )  # here too: the workers use all cores, and more threads would wait for one
            while True:
                while more and len(jobs) <= WINDOW * (pool.size if pool else 1):
                    chunk = next(chunks, [])
                    more = bool(chunk)
                    jobs.extend([_Job(chunk)] if chunk else [])
                if not jobs:
                    return
                if pool is None:
                    pool = self._pool = self._pool or self._start()
                    pool.broadcast(jobs[0].tasks[0])
                self._hand_out(pool, jobs)
                _collect(pool, jobs)
                if jobs[0].outcomes is not None:
                    yield from jobs.popleft().outcomes or ()
        except BaseException:
            self.close()
            raise
        finally:
            torch.set_num_threads(num_threads)

    def _hand_out(self, pool: Pool[Work], jobs: "deque[_Job[Work]]") -> None:
        """Keep the workers busy: lost tasks first, then the longest, so that all workers end together."""
        suspects = [job for job in jobs if pool.die_together and job.losses and job.outcomes is None]
        waiting = [job for job in suspects or jobs if job.work is None and job.outcomes is None]
        waiting.sort(key=lambda job: (job.losses, self._num_examples(job)), reverse=True)
        room = (1 if suspects else pool.capacity(len(jobs))) - sum(job.work is not None for job in jobs)
        for job in waiting[: max(0, room)]:
            job.work = pool.submit(job.tasks)

    def _num_examples(self, job: "_Job[Work]") -> int:
        return sum(self.datamodule.num_examples(task.client) for task in job.tasks)


def _chunks(tasks: Iterator[ClientTask], size: int, workers: int) -> Iterator[list[ClientTask]]:
    """Chunks of `size` tasks; those of the last turn are smaller, so that every worker gets as many."""
    while turn := list(islice(tasks, size * workers if size > 1 else 1)):  # read ahead only if it matters
        even = -(-len(turn) // workers)
        yield from (turn[start : start + even] for start in range(0, len(turn), even))


def _collect(pool: Pool[Work], jobs: "deque[_Job[Work]]") -> None:
    """Take finished work; wait if the first job is not finished."""
    training = {job.work: job for job in jobs if job.work is not None}
    for work in pool.wait(training, block=jobs[0].outcomes is None):
        job = training[work]
        job.work = None
        try:
            job.outcomes = pool.outcomes(work)
        except WorkerDied as death:
            job.losses += 1
            if job.losses > 2:  # another job may have caused the first
                died = WorkerKilled(f"a client's worker process died, three times: {death}")
                job.outcomes = [ClientFailure(task.client, "crashed", died) for task in job.tasks]


@dataclass(eq=False)
class _Job(Generic[Work]):
    """Tasks that a worker gets together.

    Attributes:
        work: the pool's handle while they are in training.
        outcomes: their outcomes, once they are known.
        losses: number of workers that died while training them.
    """

    tasks: list[ClientTask]
    work: Work | None = None
    outcomes: list[Outcome] | None = None
    losses: int = 0


def sendable(thing: object, room: Room, name: str) -> bytes:
    """The pickled object that workers are made from; its tensors get places in `room`.

    Args:
        name: the executor's name, for the error.

    Raises:
        ValueError: the object cannot be sent to another process.
    """
    try:
        return dump(thing, room)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"executor={name}: {error}, so it cannot be sent to another process; define it at the top of a module, or "
            "take executor=serial"
        ) from error


def portable(outcome: Outcome) -> Outcome:
    """The outcome with its error's stack trace as a note, since pickle drops it; an unpicklable error as text."""
    if isinstance(outcome, LocalResult) or outcome.error is None:
        return outcome
    trace = "".join(traceback.format_exception(outcome.error))
    try:
        error = pickle.loads(pickle.dumps(outcome.error))
    except Exception:
        error = RuntimeError(f"{type(outcome.error).__name__}: {outcome.error}")
    error.add_note(f"In a worker process:\n{trace}")
    return replace(outcome, error=error)
