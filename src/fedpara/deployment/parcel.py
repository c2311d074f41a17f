"""The messages of server and clients: a packet's bytes, and a few values beside them."""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, Protocol, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from fedpara.communication import Packet
from fedpara.execution import ClientFailure
from fedpara.federation import Reply, Report

Value = int | float | str | bool
MOST = 2**31 - 1  # of what one training counts: a sum over a million clients is exact in float64


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


class Answer(BaseModel):
    """The values of an answer. Values of another kind are refused, for another program may have sent them."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Trained(Answer):
    """The values of an answer to `train`: those of a `Report`, whose fields they are."""

    num_examples: Annotated[int, Field(ge=1, le=MOST)]
    num_steps: Annotated[int, Field(ge=0, le=MOST)]
    learning_rate_sum: FiniteFloat
    train_loss: float  # NaN or infinite if the training diverged
    seconds: Annotated[FiniteFloat, Field(ge=0, le=MOST)]
    finite: bool
    score: FiniteFloat | None = None


class Tested(Answer):
    """The values of an answer to `test`."""

    score: FiniteFloat


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


def read_answer(client: int, parcel: Parcel, test: bool, share: bool) -> Reply:
    """The reply in a parcel.

    Args:
        test: whether the client was asked for a score.
        share: whether a score is a share, from 0 to 1.

    Raises:
        TypeError, ValueError: it is not an answer of this version.
    """
    values = _checked(Trained, parcel)
    if values.score is not None:
        if not test:  # with privacy nobody may record it
            raise ValueError("score: must be absent, no test was asked for")
        _require_range(values.score, share)
    return Reply(Report(client=client, **values.model_dump()), parcel.packet)


def read_score(parcel: Parcel, share: bool) -> float:
    """The score in an answer to `test`.

    Args:
        share: whether it is a share, from 0 to 1.

    Raises:
        TypeError, ValueError: it is not an answer of this version.
    """
    score = _checked(Tested, parcel).score
    _require_range(score, share)
    return score


def _checked(answer: type[AnyAnswer], parcel: Parcel) -> AnyAnswer:
    try:
        return answer.model_validate(dict(parcel.values))
    except ValidationError as error:
        first = error.errors()[0]
    # not raised inside `except`: it would carry the other error, whose frames hold the upload
    name, given = str(first["loc"][0])[:40], first["input"]
    raise ValueError(f"{name}: must be given" if first["type"] == "missing" else _line(name, given, first["msg"]))


def _line(name: str, given: object, message: str) -> str:
    return f"{name}={reprlib.repr(given)}: {message[:1].lower()}{message[1:]}"


def _require_range(score: float, share: bool) -> None:
    if share and not 0 <= score <= 1:
        raise ValueError(f"score={score}: must be 0 to 1")
