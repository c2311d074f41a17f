"""What server and clients say to each other: a packet's bytes, and a few values beside them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from fedpara.communication import Packet
from fedpara.execution import ClientFailure

Value = int | float | str | bool


@dataclass(frozen=True)
class Parcel:
    """A question to a client, or its answer.

    Attributes:
        payload: of an encoded packet, as it travels; nothing else of a model is ever in a parcel.
        values: of the round, or of the training; plain numbers and names.
    """

    payload: bytes
    values: Mapping[str, Value]

    @property
    def packet(self) -> Packet:
        """The payload, to be decoded."""
        return Packet(torch.from_numpy(np.frombuffer(self.payload, np.uint8).copy()))


def payload(packet: Packet) -> bytes:
    """The bytes of a packet."""
    return packet.payload.numpy().tobytes()


class Nodes(Protocol):
    """The clients, behind a network."""

    def ask(
        self, questions: Mapping[int, Parcel], what: Literal["train", "test"]
    ) -> Iterator[tuple[int, Parcel | ClientFailure]]:
        """Put one question to each of some clients, by their numbers; answers as they come, and who gave none.

        Args:
            what: the method of `Node` that answers.
        """
        ...
