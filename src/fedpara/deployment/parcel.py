"""The messages of server and clients: a packet's bytes, and a few values beside them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from fedpara.communication import Packet
from fedpara.execution import ClientFailure
from fedpara.federation import Reply, Report

Value = int | float | str | bool


@dataclass(frozen=True)
class Parcel:
    """A question to a client, or its answer.

    Attributes:
        payload: bytes of an encoded packet; a parcel holds nothing else of a model.
        values: plain numbers and names of the round, or of the training.
    """

    payload: bytes
    values: Mapping[str, Value]

    @property
    def packet(self) -> Packet:
        """The payload as a packet, ready to be decoded."""
        return Packet(torch.from_numpy(np.frombuffer(self.payload, np.uint8).copy()))


def payload(packet: Packet) -> bytes:
    """A packet's bytes."""
    return packet.payload.numpy().tobytes()


class Nodes(Protocol):
    """The clients, behind a network."""

    def ask(
        self, questions: Mapping[int, Parcel], what: Literal["train", "test"]
    ) -> Iterator[tuple[int, Parcel | ClientFailure]]:
        """Ask some clients one question each; yield their answers as they come, and a failure for each that gave none.

        Args:
            questions: by client.
            what: the method of `Node` that answers.
        """
        ...


def answer(reply: Reply) -> Parcel:
    """The parcel of a reply: its packet, and its figures beside it."""
    values = {name: value for name, value in asdict(reply.report).items() if value is not None}
    del values["client"]  # the node that sends it is the client
    return Parcel(payload(reply.packet), values)


def read_answer(client: int, parcel: Parcel) -> Reply:
    """The reply in a parcel.

    Raises:
        TypeError, ValueError: it is not an answer of this version.
    """
    report = Report(client=client, **parcel.values)  # type: ignore[arg-type]
    if report.num_examples < 1:
        raise ValueError(f"num_examples={report.num_examples}: must be 1 or more")
    return Reply(report, parcel.packet)
