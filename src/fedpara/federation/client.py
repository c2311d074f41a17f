"""A client's half of a round, which depends only on the broadcast and on the states that the client keeps."""

from collections.abc import Callable
from dataclasses import dataclass, field

from fedpara.algorithms.base import FedAvg
from fedpara.communication import Link, Packet
from fedpara.execution.base import ClientTask, LocalResult
from fedpara.privacy import PrivateMean
from fedpara.sampling import derive_seed
from fedpara.sharing import Split
from fedpara.state import Layout, Parts, PartsLayout, State, arranged, is_finite, layout_of, parts_layout_of, typed


@dataclass(frozen=True)
class Kept:
    """The states that a client keeps from round to round. They never travel.

    Attributes:
        personal: its personal part of the model; empty before its first round, and where nothing is personal.
        memory: the state that the algorithm has it remember, such as a control variate; empty in the same cases.
    """

    personal: State = field(default_factory=dict)
    memory: State = field(default_factory=dict)


@dataclass(frozen=True)
class Broadcast:
    """The server's message at the start of a round.

    Attributes:
        round: rounds finished before it.
        packet: the encoded message; each client of the round is sent one.
        received: the message as every client decodes it.
    """

    round: int
    packet: Packet
    received: Parts


@dataclass(frozen=True)
class Report:
    """Figures of one client's local training. The server may know them.

    Attributes:
        client: index of the client.
        num_examples: training examples of the client.
        num_steps: optimizer steps that were applied.
        learning_rate_sum: sum of their learning rates.
        train_loss: mean over all examples of all local epochs, in nats.
        seconds: wall time of the training.
        finite: whether the trained model is finite. The client says so, since the server never sees a personal part.
        score: headline metric of the trained model on the client's own test distribution; None: it was not tested.
    """

    client: int
    num_examples: int
    num_steps: int
    learning_rate_sum: float
    train_loss: float
    seconds: float
    finite: bool
    score: float | None = None


@dataclass(frozen=True)
class Reply:
    """All that a client sends back to the server.

    Attributes:
        report: figures of the training.
        packet: the upload, encoded.
    """

    report: Report
    packet: Packet


@dataclass(frozen=True)
class Layouts:
    """Names, shapes and types of both messages and of the states that clients keep. Both ends know them beforehand."""

    broadcast: PartsLayout
    upload: PartsLayout
    personal: Layout
    memory: Layout

    @classmethod
    def of(cls, algorithm: FedAvg, split: Split, initial: State, server: Parts) -> "Layouts":
        """The layouts of a federation.

        Args:
            algorithm: bound to the federation.
            initial: the freshly built model.
            server: the server's state, of any round.
        """
        message = algorithm.broadcast(server)
        upload = algorithm.upload(message, message["model"], 0.0, {})  # as of a client that applied no step
        personal = layout_of(split.personal_part(initial))
        return cls(parts_layout_of(message), parts_layout_of(upload), personal, algorithm.remembered(server))


@dataclass(frozen=True)
class ClientSide:
    """The work of every client between a broadcast and its upload, without the training itself.

    Attributes:
        algorithm: bound to the federation.
        initial: the freshly built model, from which every personal part starts.
        layouts: of the messages and of the states that clients keep.
        seed: of the federation.
        learning_rate_factor: of the federation, from the number of finished rounds.
        privacy: clips uploads, and may add noise to them; None: they are sent as they are.
    """

    algorithm: FedAvg
    link: Link
    split: Split
    initial: State
    layouts: Layouts
    seed: int
    learning_rate_factor: Callable[[int], float]
    privacy: PrivateMean | None = None

    def receive(self, packet: Packet, round_index: int) -> Broadcast:
        """Decode the broadcast of a round.

        Raises:
            ValueError: the packet belongs to another model.
        """
        return Broadcast(round_index, packet, self.link.decode_down(packet, self.layouts.broadcast))

    def model(self, shared: State, kept: Kept) -> State:
        """The whole model of a client: the shared part and its own, in the order of the model's names."""
        personal = kept.personal or self.initial
        return {name: shared[name] if name in shared else personal[name] for name in self.initial}

    def task(self, client: int, broadcast: Broadcast, kept: Kept, attempt: int = 0) -> ClientTask:
        """The local training of a client. It starts from the broadcast and from the states that the client kept."""
        seed = derive_seed(self.seed, broadcast.round, client, "local training")
        correction = self.algorithm.correction(broadcast.received, kept.memory)
        state = self.model(broadcast.received["model"], kept)
        factor = self.learning_rate_factor(broadcast.round)
        return ClientTask(client, state, factor, seed, correction, attempt)

    def reply(self, result: LocalResult, broadcast: Broadcast, kept: Kept) -> tuple[Reply, Kept]:
        """Encode the shared part for the server, and keep the personal part and the memory.

        Returns:
            The reply, which travels; and the states that the client keeps if the round counts.
        """
        received, shared = broadcast.received, self.split.shared_part(result.state)
        upload = self.algorithm.upload(received, shared, result.learning_rate_sum, kept.memory)
        if self.privacy:
            upload = self.privacy.uploaded(upload, received, broadcast.round, result.client)
        seed, known = derive_seed(self.seed, broadcast.round, result.client, "upload"), known_to_both(received)
        packet = self.link.encode_up(arranged(upload, self.layouts.upload), known, seed)
        memory: State = {}
        if self.layouts.memory:
            sent = self.link.decode_up(packet, self.layouts.upload, known)
            memory = self.algorithm.remember(received, sent, kept.memory)
        return Reply(_report(result), packet), Kept(typed(result.state, self.layouts.personal), memory)


def _report(result: LocalResult) -> Report:
    return Report(
        result.client, result.num_examples, result.num_steps, result.learning_rate_sum, result.train_loss,
        result.seconds, is_finite(result.state),
    )  # fmt: skip


def known_to_both(received: Parts) -> Parts:
    """The part of an upload that server and client both hold before it is sent: the broadcast model."""
    return {"model": received["model"]}
