"""A client's half of a round: a function of what it received and what it keeps, wherever the client is."""

from dataclasses import dataclass, field

from fedpara.algorithms.base import FedAvg
from fedpara.communication import Link, Packet
from fedpara.execution.base import ClientTask, LocalResult
from fedpara.sampling import derive_seed
from fedpara.sharing import Split
from fedpara.state import Parts, State, is_finite, join, separate


@dataclass(frozen=True)
class Kept:
    """What stays with a client from round to round, and never travels.

    Attributes:
        personal: its part of the model; empty before its first round, and where nothing is personal.
        memory: what the algorithm lets it remember; likewise.
    """

    personal: State = field(default_factory=dict)
    memory: State = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a client's half of a round gave.

    Attributes:
        result: of the local training; from a client behind a network without the state.
        packet: the upload, encoded, which is all that travels.
        upload: its names, shapes and types; the values are the client's, and the server takes none of them.
        finite: whether the trained model is; a personal part is not for the server to see.
        kept: what the client keeps if the round counts.
        accuracy: of the trained model, from 0 to 1, on the client's own test distribution; None: not tested.
    """

    result: LocalResult
    packet: Packet
    upload: Parts
    finite: bool
    kept: Kept
    accuracy: float | None = None


@dataclass(frozen=True)
class ClientSide:
    """What every client of a federation does between a broadcast and its upload, the training itself aside.

    Args:
        initial: the freshly built model: the common start of what is personal.
        like: any broadcast.
        seed, lr_decay: of the federation.
        remembers: whether the algorithm lets clients remember anything, for which they read their own uploads.
    """

    algorithm: FedAvg
    link: Link
    split: Split
    initial: State
    like: Parts
    seed: int
    lr_decay: float
    remembers: bool

    def receive(self, packet: Packet) -> Parts:
        """The broadcast, read.

        Raises:
            ValueError: it is of another model.
        """
        return separate(self.link.decode_down(packet, join(self.like)), self.like)

    def model(self, shared: State, kept: Kept) -> State:
        """A whole model in the order of its own names."""
        personal = kept.personal or self.initial
        return {name: shared[name] if name in shared else personal[name] for name in self.initial}

    def task(self, client: int, round_index: int, received: Parts, kept: Kept, attempt: int = 0) -> ClientTask:
        """The training of a client that starts from what it received and what it kept."""
        seed = derive_seed(self.seed, round_index, client, "local training")
        correction = self.algorithm.correction(received, kept.memory)
        state = self.model(received["model"], kept)
        return ClientTask(client, state, self.lr_decay**round_index, seed, correction, attempt)

    def reply(self, result: LocalResult, round_index: int, received: Parts, kept: Kept) -> Reply:
        """Send up what is shared, keep what is personal, remember what the server reads."""
        shared = self.split.shared_part(result.state)
        parts = self.algorithm.upload(received, shared, result.learning_rate_sum, kept.memory)
        seed, known = derive_seed(self.seed, round_index, result.client, "upload"), known_to_both(received)
        packet = self.link.encode_up(join(parts), known, seed)
        memory: State = {}
        if self.remembers:
            sent = separate(self.link.decode_up(packet, join(parts), known), parts)
            memory = self.algorithm.remember(received, sent, kept.memory)
        kept = Kept(self.split.personal_part(result.state), memory)
        return Reply(result, packet, parts, is_finite(result.state), kept)


def known_to_both(received: Parts) -> State:
    """What server and client hold when the upload is sent, under the names of the upload."""
    return join({"model": received["model"]})
