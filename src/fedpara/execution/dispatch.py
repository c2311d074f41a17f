"""Clients of a round in parallel: tasks to workers, the longest first, and results back in order, whoever dies."""

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
Work = TypeVar("Work", bound=Hashable)  # a pool's name for what it has in hand
WINDOW = 8  # chunks a worker that may be in memory, waiting, in training or done


class WorkerDied(Exception):
    """The worker that trained is dead, and its work lost; the text says of what it died."""


class Pool(Protocol[Work]):
    """Workers that train what they are handed.

    Attributes:
        size: workers, or how many there are to be.
        die_together: whether the death of one takes the work of all with it, so that nobody knows whose doing it was.
    """

    size: int
    die_together: bool

    def capacity(self, work: int) -> int:
        """Pieces of work that may be in hand, of so many in sight; workers start as they are needed."""
        ...

    def broadcast(self, task: ClientTask) -> None:
        """What this task shares with those that are submitted from now on, by identity, travels once."""
        ...

    def submit(self, tasks: list[ClientTask]) -> Work:
        """Have the tasks trained; a name for them."""
        ...

    def wait(self, work: Collection[Work], block: bool) -> Iterable[Work]:
        """Which of the work is done; with `block`, after something has happened."""
        ...

    def outcomes(self, work: Work) -> list[Outcome]:
        """What became of the tasks.

        Raises:
            WorkerDied: nothing.
            Exception: the worker's executor could not be made, or raised.
        """
        ...

    def close(self) -> None:
        """End all workers at once, whatever they do."""
        ...


class ParallelExecutor(Around, Generic[Work]):
    """Trains a round's clients in a pool of workers, each with an executor of its own; tests models in this process.

    When a worker dies its tasks are trained again by another; two deaths more, and a task's own clients fail alone.

    Args:
        training: how one client is trained.
        inner: makes the executor that each worker holds, and one for this process.
        threads: of each worker.
        chunk: tasks that a worker is handed at once.

    Attributes:
        name: of the executor's yaml, for errors.
        inner: the inner executor in this process.
        workers: how many there are.

    Raises:
        ValueError: the inner executor has workers itself, or the data have.
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
        """The pool, with its first task at hand."""

    def close(self) -> None:
        """End the workers at once; another `run` starts others."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[Outcome]:
        """Results in the order of the tasks, as they come; whoever does not take all of them ends the workers too."""
        chunks, more = _chunks(iter(tasks), self.chunk, max(1, self.workers)), True
        num_threads = torch.get_num_threads()
        jobs: deque[_Job[Work]] = deque()  # a window over the tasks, in their order, so that memory is bounded
        pool: Pool[Work] | None = None
        try:
            torch.set_num_threads(self.threads)  # here too: every core is taken, and idle threads would wait for one
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
        """Keep the workers busy: first what was lost, then the longest, so that all end together."""
        suspects = [job for job in jobs if pool.die_together and job.losses and job.outcomes is None]
        waiting = [job for job in suspects or jobs if job.work is None and job.outcomes is None]
        waiting.sort(key=lambda job: (job.losses, self._num_examples(job)), reverse=True)
        room = (1 if suspects else pool.capacity(len(jobs))) - sum(job.work is not None for job in jobs)
        for job in waiting[: max(0, room)]:
            job.work = pool.submit(job.tasks)

    def _num_examples(self, job: "_Job[Work]") -> int:
        return sum(self.datamodule.num_examples(task.client) for task in job.tasks)


def _chunks(tasks: Iterator[ClientTask], size: int, workers: int) -> Iterator[list[ClientTask]]:
    """Of `size` each; those of the workers' last turn smaller, so that all have as many."""
    while turn := list(islice(tasks, size * workers if size > 1 else 1)):  # read ahead only where it matters
        even = -(-len(turn) // workers)
        yield from (turn[start : start + even] for start in range(0, len(turn), even))


def _collect(pool: Pool[Work], jobs: "deque[_Job[Work]]") -> None:
    """Take what is done; wait for something where the first job is not."""
    training = {job.work: job for job in jobs if job.work is not None}
    for work in pool.wait(training, block=jobs[0].outcomes is None):
        job = training[work]
        job.work = None
        try:
            job.outcomes = pool.outcomes(work)
        except WorkerDied as death:
            job.losses += 1
            if job.losses > 2:  # the first may have been another's doing
                died = WorkerKilled(f"a client's worker process died, three times: {death}")
                job.outcomes = [ClientFailure(task.client, "crashed", died) for task in job.tasks]


@dataclass(eq=False)
class _Job(Generic[Work]):
    """Tasks handed to a worker together.

    Attributes:
        work: what the pool calls them while they are in training.
        outcomes: what became of them, once it is known.
        losses: how often a worker died meanwhile.
    """

    tasks: list[ClientTask]
    work: Work | None = None
    outcomes: list[Outcome] | None = None
    losses: int = 0


def sendable(thing: object, room: Room, name: str) -> bytes:
    """What workers are made of, without its tensors, which are given places in `room`.

    Args:
        name: of the executor, for the error.

    Raises:
        ValueError: it cannot be sent to another process.
    """
    try:
        return dump(thing, room)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"executor={name}: {error}, hence not sent to another process; define it at the top of a module, or "
            "take executor=serial"
        ) from error


def portable(outcome: Outcome) -> Outcome:
    """With the stack trace of its error as a note, since pickle drops it; an error that pickle refuses, in words."""
    if isinstance(outcome, LocalResult) or outcome.error is None:
        return outcome
    trace = "".join(traceback.format_exception(outcome.error))
    try:
        error = pickle.loads(pickle.dumps(outcome.error))
    except Exception:
        error = RuntimeError(f"{type(outcome.error).__name__}: {outcome.error}")
    error.add_note(f"In a worker process:\n{trace}")
    return replace(outcome, error=error)
