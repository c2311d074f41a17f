"""Trains the clients of a round in parallel, in actors on a Ray cluster: on this machine, or on many nodes.

Ray (Moritz et al., OSDI 2018) schedules, moves and stores. This module decides where data are stored, and what to do
about a lost actor.
"""

import logging
import os
import signal
import socket
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar, cast

import numpy as np
import torch
from pydantic import Field, SkipValidation, validate_call
from torch import Tensor

from fedpara.execution.base import ClientTask, Executor, MakeExecutor
from fedpara.execution.dispatch import Outcome, ParallelExecutor, WorkerDied, portable, sendable
from fedpara.execution.serial import SerialExecutor
from fedpara.execution.training import LocalTraining
from fedpara.execution.transfer import Room, dump, load
from fedpara.installation import install_line
from fedpara.state import State

log = logging.getLogger(__name__)
Positive = Annotated[int, Field(ge=1)]
Parcel = tuple[
    bytes, np.ndarray
]  # an object without its tensors, and the memory with the tensors, which Ray does not copy
Result = TypeVar("Result")
PATIENCE_S = 60  # seconds without any actor before a line in the log
TRIES = 3  # so many actors that die at their start end the run


if TYPE_CHECKING:  # Ray is an option
    from ray import ObjectRef
    from ray.actor import ActorHandle

    class Method(Protocol[Result]):
        """A method of an actor."""

        def remote(self, *given: object) -> ObjectRef[Result]:
            """Run it in the actor."""
            ...

    class Handle(ActorHandle["Actor"]):
        """A handle of an `Actor`."""

        ready: Method[None]
        train: Method[Parcel]
        evaluate: Method[dict[str, float]]


class RayExecutor(ParallelExecutor["ObjectRef[Parcel]"]):
    """Trains a round's clients in Ray actors, each with a model, an executor and its node's examples.

    Results have the same bits as those of the inner executor with as many threads, whichever actor trained them. The
    object store of every node holds the examples and, for each round, the tensors that all tasks share. An actor trains
    one piece of work at a time. Work that is lost with an actor or a node is trained again elsewhere, and new nodes get
    actors.

    Args:
        training, inner, chunk: see `ParallelExecutor`.
        address: `auto` for the cluster of this node, or `host:port`; None: `RAY_ADDRESS`, or this machine alone.
        actors: number of actors; None: as many as fit on the nodes. No more start than there are known tasks.
        cpus: cores of each actor, which are also its threads; can be a fraction.
        gpus: GPUs of each actor, can be a fraction; None: one if the cluster has GPUs and the trainer is not for a CPU.
        memory_gb: memory that Ray reserves for each actor, in 10^9 bytes; None: no reservation.
    """

    name = "ray"

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        training: LocalTraining,
        inner: Annotated[MakeExecutor, SkipValidation] = SerialExecutor,
        address: str | None = None,
        actors: Positive | None = None,
        cpus: Annotated[float, Field(gt=0)] = 1.0,
        gpus: Annotated[float, Field(ge=0)] | None = None,
        memory_gb: Annotated[float, Field(gt=0)] | None = None,
        chunk: Positive = 1,
    ) -> None:
        if training.names_a_device:
            raise ValueError(f"devices={training.options['devices']}: must be 1; Ray chooses each actor's GPU")
        elsewhere = training.wants_gpu and not torch.accelerator.is_available()
        here = replace(training, accelerator="cpu", precision="32-true") if elsewhere else training
        super().__init__(here, inner, max(1, int(cpus)), chunk)
        self.actors_training, self.address, self.actors = training, address, actors
        self.needs = {"CPU": cpus, "GPU": gpus, "memory": memory_gb and memory_gb * 1e9}
        self._wants_gpus, self._began_ray = training.accelerator != "cpu", False

    @property
    def workers(self) -> int:
        """Number of actors that have started."""
        return self._pool.capacity(0) if self._pool else 0

    def prepare(self) -> None:
        """Check that the network takes the data, and join the cluster.

        Raises:
            ValueError: it does not take them, Ray is not installed, there is no cluster at the address, or no node has
                room for an actor.
        """
        self.inner.prepare()
        self._join()

    def _join(self) -> None:
        self._began_ray |= _join(self.address)
        if self.needs["GPU"] is None:
            self.needs["GPU"] = float(self._wants_gpus and any(node.get("GPU") for node in _nodes()))
        if not _room(self.needs):
            largest = {name: max((node.get(name, 0) for node in _nodes()), default=0) for name in self.needs}
            raise ValueError(
                f"cpus={self.needs['CPU']:g}: must fit on one node, together with gpus and memory_gb; "
                f"no node has more than {largest['CPU']:g}, {largest['GPU']:g} and {largest['memory'] / 1e9:.1f}"
            )

    def _start(self) -> "Actors":
        self._join()
        return Actors(
            _parcel((self.make, self.actors_training.without_data()), partial(sendable, name=self.name)),
            _parcel(self.datamodule, partial(sendable, name=self.name)),
            {name: value for name, value in self.needs.items() if value},
            lambda: self.actors or max(1, _room(self.needs)), self.threads,
        )  # fmt: skip

    def evaluate(self, state: State, client: int | None = None) -> dict[str, float]:
        """Test here, or in an actor if the actors have GPUs and this process has none."""
        if not self.needs["GPU"] or self.device.type != "cpu":
            return self.inner.evaluate(state, client)
        self._pool = pool = self._pool or self._start()
        assert isinstance(pool, Actors)
        return pool.evaluate(state, client)

    def close(self) -> None:
        """End the actors, and Ray if it was started for them."""
        super().close()
        if self._began_ray:
            import ray

            ray.shutdown()
            self._began_ray = False


class Actors:
    """The actors of a cluster as a pool; an actor starts only when there is work for it.

    Args:
        model: the function that makes the inner executor, and its arguments except the data.
        data: the datamodule.
        needs: resources of an actor, by Ray's names.
        wanted: gives the number of actors that there should be on the current nodes.
        threads: threads of each actor.
    """

    die_together = False

    def __init__(
        self, model: Parcel, data: Parcel, needs: Mapping[str, float], wanted: Callable[[], int], threads: int
    ) -> None:
        import ray

        self.ray, self._wanted = ray, wanted
        given = ray.put(model), ray.put(data), threads, torch.get_float32_matmul_precision()
        options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0)}
        options |= {"memory": needs["memory"]} if "memory" in needs else {}
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(_own_paths())}}
        kind = ray.remote(Actor).options(scheduling_strategy="SPREAD", runtime_env=environment, **options)
        self._make = cast("Callable[[], Handle]", partial(kind.remote, *given))
        self.size, self._failed = 0, 0
        self._idle: list[Handle] = []
        self._starting: dict[ObjectRef[None], Handle] = {}
        self._training: dict[ObjectRef[Parcel], Handle] = {}
        self._common = Room(0, 0)
        self._common_memory: ObjectRef[np.ndarray] | None = None

    def capacity(self, work: int) -> int:
        """One piece of work for each started actor; actors start as long as there is more work."""
        number = len(self._idle) + len(self._training)
        self._begin(min(self.size, work) - number - len(self._starting))
        return number

    def _begin(self, number: int) -> None:
        for _ in range(number):
            actor = self._make()
            self._starting[actor.ready.remote()] = actor

    def broadcast(self, task: ClientTask) -> None:
        """Send once to each node the tensors that this task shares, by identity, with later ones."""
        self.size = self._wanted()
        self._common = Room(0, sys.maxsize)
        dump(task, self._common)
        self._common_memory = self.ray.put(_written(self._common))

    def submit(self, tasks: list[ClientTask]) -> "ObjectRef[Parcel]":
        """Start to train the tasks in an idle actor."""
        actor = self._idle.pop()
        data, memory = _parcel(tasks, room=Room(0, sys.maxsize, known=self._common.laid, memory=1))
        work = actor.train.remote(data, self._common_memory, memory)
        self._training[work] = actor
        return work

    def wait(self, work: "Collection[ObjectRef[Parcel]]", block: bool) -> "Iterable[ObjectRef[Parcel]]":
        """The finished pieces of work; with `block`, wait until something happens, or for a while."""
        references = [*work, *self._starting]
        done, _ = self.ray.wait(references, timeout=PATIENCE_S if block else 0)
        if done:
            done, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        elif block and not work:
            log.warning("no actor is alive; waiting for the cluster to have room for one")
            self.size = self._wanted()
        for reference in done:
            if reference in self._starting:
                self._welcome(reference)
        return [reference for reference in done if reference in self._training]

    def _welcome(self, reference: "ObjectRef[None]") -> None:
        actor = self._starting.pop(reference)
        try:
            self._get(reference)
        except WorkerDied as death:
            self._failed += 1
            if self._failed == TRIES:
                raise RuntimeError(f"executor=ray: actors die as they start: {death}") from death
        else:
            self._idle.append(actor)
            self._failed = 0

    def outcomes(self, work: "ObjectRef[Parcel]") -> list[Outcome]:
        """The outcomes of the tasks.

        Raises:
            WorkerDied: the actor or its node died.
            Exception: the actor's executor raised an error.
        """
        actor = self._training.pop(work)
        try:
            data, memory = self._get(work)
        except WorkerDied as death:
            log.warning("an actor died; its clients are trained again elsewhere (%s)", death)
            self.ray.kill(actor)
            self.size = self._wanted()
            raise
        self._idle.append(actor)
        return load(data, _tensor(memory), copy=True)

    def evaluate(self, state: State, client: int | None) -> dict[str, float]:
        """Test in an actor, after the work that it has."""
        data, memory = _parcel(state)
        lost: list[Handle] = []  # `outcomes` will report the work that they lost
        while True:
            alive = [actor for actor in [*self._training.values(), *self._idle] if actor not in lost]
            if not alive:
                self._begin(1 - len(self._starting))
                self.wait([], block=True)
                continue
            try:
                return self._get(alive[-1].evaluate.remote(data, memory, client))
            except WorkerDied:
                lost.append(alive[-1])
                self._idle = [actor for actor in self._idle if actor not in lost]

    def _get(self, reference: "ObjectRef[Result]") -> Result:
        exceptions = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except (exceptions.RayActorError, exceptions.ObjectLostError, exceptions.NodeDiedError) as error:
            raise WorkerDied(" ".join(str(error).split())[:300]) from error

    def close(self) -> None:
        """End all actors at once, even in the middle of work."""
        if self.ray.is_initialized():
            for actor in [*self._idle, *self._starting.values(), *self._training.values()]:
                self.ray.kill(actor)


def _parcel(thing: object, write: Callable[[object, Room], bytes] = dump, room: Room | None = None) -> Parcel:
    room = room or Room(0, sys.maxsize)
    return write(thing, room), _written(room)


def _written(room: Room) -> np.ndarray:
    memory = torch.empty(room.end, dtype=torch.uint8)
    room.write(memory)
    return memory.numpy()


def _tensor(memory: np.ndarray) -> Tensor:
    """A tensor over memory of the object store; do not write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(memory)


def _join(address: str | None) -> bool:
    """Join or start Ray; returns whether it was started here, since a notebook or a test may have done so before."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"executor=ray: needs Ray; {install_line('ray')}") from error
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray._private.authentication").setLevel(
        logging.ERROR
    )  # it prints a line about a token at every start
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address not in (None, "auto", "local"):  # Ray itself would try for minutes
            socket.create_connection(_host_and_port(address), timeout=10).close()
        cpus, dashboard = (None, None) if address else (len(os.sched_getaffinity(0)), False)
        ray.init(address or "local", logging_level=logging.WARNING, num_cpus=cpus, include_dashboard=dashboard)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"address={address}: no Ray cluster answers there; `ray start --head` starts one, null takes this machine"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray replaces the handler, and would end silently
    return True


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _nodes() -> list[dict[str, float]]:
    """The resources of every living node, by Ray's names."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(needs: Mapping[str, float | None]) -> int:
    """Number of actors that fit on the living nodes."""
    given = {name: value for name, value in needs.items() if value}
    return sum(int(min(node.get(name, 0) / value for name, value in given.items())) for node in _nodes())


def _own_paths() -> list[str]:
    """The folders of modules, except those of the interpreter and installed packages, which every node has itself."""
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return [path for path in sys.path if path and not any(path.startswith(prefix) for prefix in installed)]


# what follows runs in the actor


class Actor:
    """Trains the tasks that it gets.

    Args:
        model, data: see `Actors`.
        threads: threads of this process.
        matmul_precision: precision of float32 products.
    """

    def __init__(self, model: Parcel, data: Parcel, threads: int, matmul_precision: str) -> None:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(matmul_precision)
        self._model, self._data = model, data

    def ready(self) -> None:
        """Make the executor here rather than in `__init__`, so that the driver gets its errors."""
        make, values = load(self._model[0], _tensor(self._model[1]), copy=True)
        datamodule = load(self._data[0], _tensor(self._data[1]), copy=False)
        self.executor: Executor = make(LocalTraining(datamodule=datamodule, **values))
        datamodule.to(self.executor.device)

    def train(self, data: bytes, common: np.ndarray, own: np.ndarray) -> Parcel:
        """Train the tasks and return their outcomes."""
        tasks = load(data, _tensor(common), _tensor(own), copy=False)
        return _parcel([portable(outcome) for outcome in self.executor.run(tasks)])

    def evaluate(self, data: bytes, memory: np.ndarray, client: int | None) -> dict[str, float]:
        """The metrics of a state."""
        metrics: dict[str, float] = self.executor.evaluate(load(data, _tensor(memory), copy=False), client)
        return metrics
