"""Clients of a round in parallel, in worker processes on this machine that keep their model."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any

import torch
from pydantic import Field, validate_call

from fedpara.data.datamodule import FederatedDataModule
from fedpara.execution.base import ClientFailure, ClientTask
from fedpara.execution.serial import SerialExecutor
from fedpara.execution.workers import Outcome, Workers, size
from fedpara.models.module import ClassificationModule

Positive = Annotated[int, Field(ge=1)]
WINDOW = 8  # chunks a worker that may be in memory, waiting, in training or done


class ProcessesExecutor:
    """Trains a round's clients in worker processes; tests models in this one.

    A result is the inner executor's in a process with as many threads, bit for bit, whichever worker trained it.
    Workers start with the first tasks, have the examples in shared memory, and end with this process, however it ends.
    When one dies, what was in training is trained again, one by one: a second death fails its own clients alone.

    Args:
        module, datamodule, trainer, jacobian_correction: as the inner executor takes them.
        inner: makes the executor that each worker holds, of these four.
        workers: processes; None: one a GPU, or as many as the usable cores have room for. No more start than there
            are tasks in a round.
        threads: of each worker.
        chunk: tasks that a worker is handed at once; more than 1 is for inner executors that train clients together.

    Raises:
        ValueError: the inner executor has workers itself, or the data have.
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        module: ClassificationModule,
        datamodule: FederatedDataModule,
        trainer: Any,
        jacobian_correction: Any = 0.0,
        inner: Any = SerialExecutor,
        workers: Positive | None = None,
        threads: Positive = 1,
        chunk: Positive = 1,
    ) -> None:
        if getattr(inner, "func", inner) is ProcessesExecutor:
            raise ValueError("inner=processes: must train in its own process, as serial does")
        if datamodule.num_workers:
            raise ValueError(
                f"num_workers={datamodule.num_workers}: must be 0 under executor=processes, whose workers make their "
                "own batches"
            )
        make = partial(inner, jacobian_correction=jacobian_correction)
        self.here: Any = make(module=module, datamodule=datamodule, trainer=trainer)
        num_devices = torch.cuda.device_count() if self.here.device.type == "cuda" else 0
        self.workers = workers or num_devices or max(1, len(os.sched_getaffinity(0)) // threads)
        self.threads, self.chunk = threads, chunk
        self._make_pool = partial(
            Workers, make, module, datamodule, trainer,
            number=self.workers, threads=threads, num_devices=num_devices, chunk=chunk,
            state_bytes=size(list(self.here.initial_state().values())),
        )  # fmt: skip
        self._pool: Workers | None = None

    def __getattr__(self, name: str) -> Any:
        """All but the training is the inner executor's, in this process."""
        if name == "here":  # not there yet
            raise AttributeError(name)
        return getattr(self.here, name)

    def close(self) -> None:
        """End the workers at once; another `run` starts others."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[Outcome]:
        """Results in the order of the tasks, as they come; whoever does not take all of them ends the workers too."""
        source, more = iter(tasks), True
        pool: Workers | None = None
        num_threads = torch.get_num_threads()
        jobs: deque[_Job] = deque()  # a window over the tasks, in their order, so that memory is bounded
        try:
            torch.set_num_threads(self.threads)  # here too: every core is taken, and idle threads would wait for one
            while True:
                while more and len(jobs) <= WINDOW * self.workers:
                    chunk = list(islice(source, self.chunk))
                    more = bool(chunk)
                    jobs.extend([_Job(chunk)] if chunk else [])
                if not jobs:
                    return
                if pool is None:
                    pool = self._started()
                    pool.broadcast(jobs[0].tasks[0])
                self._hand_out(pool, jobs)
                self._collect(pool, jobs)
                if jobs[0].outcomes is not None:
                    yield from jobs.popleft().outcomes or ()
        except BaseException:
            self.close()
            raise
        finally:
            torch.set_num_threads(num_threads)

    def _started(self) -> Workers:
        if self._pool is None:
            self._pool = self._make_pool()
        return self._pool

    def _hand_out(self, pool: Workers, jobs: "deque[_Job]") -> None:
        """Keep the workers busy; of what is in sight the longest go first, so that all end together."""
        lost = [job for job in jobs if job.losses and job.outcomes is None]
        waiting = [job for job in lost or jobs if job.future is None and job.outcomes is None]
        waiting.sort(key=self._num_examples, reverse=True)
        room = (1 if lost else pool.capacity) - sum(job.future is not None for job in jobs)
        for job in waiting[: max(0, room)]:
            job.future = pool.submit(job.tasks)

    def _num_examples(self, job: "_Job") -> int:
        return sum(self.here.datamodule.num_examples(task.client) for task in job.tasks)

    def _collect(self, pool: Workers, jobs: "deque[_Job]") -> None:
        """Take what is done; wait for something where the first job is not."""
        training = {job.future: job for job in jobs if job.future is not None}
        done, _ = wait(training, timeout=None if jobs[0].outcomes is None else 0, return_when=FIRST_COMPLETED)
        for future in done:
            job = training[future]
            job.future = None
            try:
                job.outcomes = pool.outcomes(future)
            except BrokenProcessPool:
                job.losses += 1
                if job.losses > 1:
                    died = RuntimeError("its worker process died, and so did the next")
                    job.outcomes = [ClientFailure(task.client, "crashed", died) for task in job.tasks]


@dataclass(eq=False)
class _Job:
    """Tasks handed to a worker together.

    Attributes:
        future: where they are in training.
        outcomes: what became of them, once it is known.
        losses: how often a worker died meanwhile.
    """

    tasks: list[ClientTask]
    future: Future[Any] | None = None
    outcomes: list[Outcome] | None = None
    losses: int = 0
