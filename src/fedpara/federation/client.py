"""A client's half of a round, which depends only on the broadcast and on the states that the client keeps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fedpara.algorithms.base import FedAvg
from fedpara.communication import Link, Packet
from fedpara.communication.link import RESIDUAL
from fedpara.execution.base import ClientTask, LocalResult
from fedpara.federation.catch_up import Downlink
from fedpara.federation.factor_sets import FactorDownlink
from fedpara.privacy import PrivateMean
from fedpara.sampling import derive_seed
from fedpara.sharing import Resetting, Split
from fedpara.state import Layout, Parts, PartsLayout, State, arranged, is_finite, layout_of, parts_layout_of, typed


@dataclass(frozen=True)
class Kept:
    """The states that a client keeps from round to round. They never travel.

    Attributes:
        personal: its personal part of the model; empty before its first round, and where nothing is personal.
        memory: the state that the algorithm has it remember, such as a control variate, and what the link's error
            feedback does; empty before its first round, and without either.
        received: the shared part that it received in its last round; empty before that, and without `catch_up`. A
            simulation need not keep it.
    """

    personal: State = field(default_factory=dict)
    memory: State = field(default_factory=dict)
    received: State = field(default_factory=dict)


@dataclass(frozen=True)
class Broadcast:
    """The server's message at the start of a round.

    Attributes:
        round: rounds finished before it.
        packet: the encoded message; each client of the round is sent one.
        received: the message as every client decodes it.
        moving: the part of it that the round trains and sends back.
        packets: for clients that are sent only what they lack, the packet in place of the whole one.
        by_tier: with clients of different size, the message to each tier in place of this one.
        tiers: the number of each client's tier.
    """

    round: int
    packet: Packet
    received: Parts
    moving: Parts
    packets: Mapping[int, Packet] = field(default_factory=dict)
    by_tier: Sequence["Broadcast"] = ()
    tiers: Sequence[int] = ()

    def of(self, client: int) -> "Broadcast":
        """The message to a client: this one, or that of its tier."""
        return self.by_tier[self.tiers[client]] if self.by_tier else self

    def to(self, client: int) -> Packet:
        """The packet that a client is sent."""
        return self.packets.get(client, self.of(client).packet)


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
    received: Layout

    @classmethod
    def of(
        cls, algorithm: FedAvg, link: Link, split: Split, initial: State, server: Parts, catch_up: bool = False
    ) -> "Layouts":
        """The layouts of a federation.

        Args:
            algorithm: bound to the federation.
            initial: the freshly built model.
            server: the server's state, of any round.
            catch_up: whether clients keep the model that they received.

        Raises:
            ValueError: the link has error feedback, and uploads are more than a model.
        """
        message = algorithm.broadcast(server)
        upload = algorithm.upload(message, message["model"], 0.0, {})  # as of a client that applied no step
        personal = layout_of(split.personal_part(initial))
        if link.error_feedback and (more := sorted(upload.keys() - {"model"})):
            raise ValueError(
                f"error_feedback=True: must be false with {type(algorithm).__name__}, whose {', '.join(more)} would "
                "get twice what it lost: it is made from what the server has received"
            )
        moving = layout_of(split.movable(message["model"]))
        residual = link.remembered(moving)
        memory = dict(algorithm.remembered(server)) | dict(residual)
        received = layout_of(message["model"]) if catch_up else {}
        upload_layout = dict(parts_layout_of(upload)) | {"model": moving}  # what some round sends back
        return cls(parts_layout_of(message), upload_layout, personal, memory, received)


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

    @property
    def downlink(self) -> Downlink:
        """Broadcasts that depend on the client."""
        if isinstance(self.split, Resetting):
            return FactorDownlink(self.link, self.split, self.layouts.broadcast)
        return Downlink(self.link, self.split, self.layouts.broadcast)

    def receive(self, packet: Packet, round_index: int, layout: PartsLayout | None = None) -> Broadcast:
        """Decode the whole broadcast of a round.

        Args:
            layout: of the message to a tier; None: of the whole one.

        Raises:
            ValueError: the packet belongs to another model.
        """
        return self._broadcast(packet, round_index, self.link.decode_down(packet, layout or self.layouts.broadcast))

    def receive_own(self, packet: Packet, round_index: int, kept: Kept) -> Broadcast:
        """Decode the broadcast that a client was sent, with `catch_up` only what it lacks.

        Raises:
            ValueError: the packet belongs to another model, or what it leaves out is not kept.
        """
        if not self.layouts.received:
            return self.receive(packet, round_index)
        return self._broadcast(packet, round_index, self.downlink.decode(packet, kept.received))

    def _broadcast(self, packet: Packet, round_index: int, received: Parts) -> Broadcast:
        return Broadcast(round_index, packet, received, self.moving(received, round_index))

    def moving(self, parts: Parts, round_index: int) -> Parts:
        """A message with the part of its model that the round trains and sends back."""
        return parts | {"model": self.split.moving(parts["model"], round_index)}

    def upload_layout(self, broadcast: Broadcast) -> PartsLayout:
        """The layout of the round's uploads: a whole one's, with what the round sends back of the model."""
        return dict(self.layouts.upload) | {"model": layout_of(self.algorithm.sent(broadcast.moving))}

    def known_to_both(self, broadcast: Broadcast) -> Parts:
        """The part of an upload that server and client both hold before it is sent: what it has of the broadcast."""
        return {"model": self.algorithm.sent(broadcast.moving)}

    def model(self, shared: State, kept: Kept) -> State:
        """The whole model of a client: the shared part and its own, in the order of the model's names."""
        personal = kept.personal or self.initial
        return {name: shared[name] if name in shared else personal[name] for name in self.initial}

    def task(self, client: int, broadcast: Broadcast, kept: Kept, attempt: int = 0) -> ClientTask:
        """The local training of a client. It starts from the broadcast and from the states that the client kept."""
        broadcast = broadcast.of(client)
        seed = derive_seed(self.seed, broadcast.round, client, "local training")
        start = self.split.started(broadcast.received["model"], broadcast.round)
        correction = self.algorithm.correction(broadcast.received | {"model": start}, _of_algorithm(kept.memory))
        if trained := self.split.trained(broadcast.round):
            correction = replace(correction, trained=trained)
        state = self.model(start, kept)
        factor = self.learning_rate_factor(broadcast.round)
        return ClientTask(client, state, factor, seed, correction, attempt, self.split.personal)

    def reply(self, result: LocalResult, broadcast: Broadcast, kept: Kept) -> tuple[Reply, Kept]:
        """Encode the shared part for the server, and keep the personal part and the memory.

        Returns:
            The reply, which travels; and the states that the client keeps if the round counts.
        """
        broadcast = broadcast.of(result.client)
        received, layout = broadcast.moving, self.upload_layout(broadcast)
        shared = self.split.sent(result.state, broadcast.round)
        own = _of_algorithm(kept.memory)
        upload = arranged(self.algorithm.upload(received, shared, result.learning_rate_sum, own), layout)
        known = self.known_to_both(broadcast)
        if self.privacy:
            upload = self.privacy.uploaded(upload, known, broadcast.round, result.client)
        upload = self.link.with_residual(upload, kept.memory)
        seed = derive_seed(self.seed, broadcast.round, result.client, "upload")
        packet = self.link.encode_up(upload, known, seed)
        memory: State = {}
        if self.layouts.memory:
            sent = self.link.decode_up(packet, layout, known)
            memory = self.algorithm.remember(received, sent, own)
            if self.link.error_feedback:
                memory |= self._residual(kept.memory) | self.link.residual(upload, sent)
        held = broadcast.received["model"] if self.layouts.received else {}
        return Reply(_report(result), packet), Kept(typed(result.state, self.layouts.personal), memory, held)

    def _residual(self, memory: State) -> State:
        """What the client kept for error feedback; zeros before its first round."""
        layout = {name: spec for name, spec in self.layouts.memory.items() if name.startswith(RESIDUAL)}
        return {n: memory[n] if n in memory else torch.zeros(s.shape, dtype=s.dtype) for n, s in layout.items()}


def _of_algorithm(memory: State) -> State:
    """The part of a client's memory that is not the link's."""
    return {name: tensor for name, tensor in memory.items() if not name.startswith(RESIDUAL)}


def _report(result: LocalResult) -> Report:
    return Report(
        result.client, result.num_examples, result.num_steps, result.learning_rate_sum, result.train_loss,
        result.seconds, is_finite(result.state),
    )  # fmt: skip
