"""One client on its own machine: its data, what it keeps, and its answers to the server."""

from dataclasses import replace
from pathlib import Path

import folders
from fedpara.app.build import build
from fedpara.app.composition import compose
from fedpara.client import Kept, Reply
from fedpara.execution import ClientFailure, LocalResult
from fedpara.state import Parts
from kept import KeptStates
from parcel import Parcel, payload


class Node:
    """Answers questions with the client's half of a round, in the experiment that the server typed.

    Args:
        overrides: as of `python src/train.py`.
        folder: of the client: its data, as `python deploy/split.py` writes them, and what it keeps. Nothing else is
            read, and nothing is written elsewhere.

    Raises:
        UnusableFile: the folder holds no client's data.
        ValueError: the network cannot be trained on them.
    """

    def __init__(self, overrides: list[str], folder: Path) -> None:
        self.folder, self.client = folder, folders.owner(folder)
        cfg = folders.localised(compose(overrides), folder, self.client)
        experiment, federation = build(cfg)
        experiment.datamodule.setup()
        experiment.datamodule.to(experiment.executor.device)
        experiment.executor.try_one_example()
        self.executor, self.side = experiment.executor, federation.client_side
        personal = federation.split.personal_part(self.side.initial)
        self.kept_like = {"personal": personal, "memory": federation.algorithm.remembered(federation.server)}

    def train(self, question: Parcel) -> Parcel:
        """Train from what was received and kept; the answer is on its way only when what is kept is on the disk.

        Raises:
            Exception: whatever the training raised; the server hears of it.
        """
        asked = question.values
        received, kept, states = self._start(question)
        index = int(asked["round"])
        (outcome,) = self.executor.run([self.side.task(self.client, index, received, kept, int(asked["attempt"]))])
        if isinstance(outcome, ClientFailure):
            raise outcome.error or RuntimeError(outcome.reason)
        reply = self.side.reply(outcome, index, received, kept)
        if reply.finite:
            states.write(reply.kept, index + 1, int(asked["last"]))
        if asked["test"] and reply.finite:
            reply = replace(reply, accuracy=self.executor.evaluate(outcome.state, self.client)["acc"])
        return answer(reply)

    def test(self, question: Parcel) -> Parcel:
        """Accuracy of the model from which the client would start, on its own test distribution."""
        received, kept, _ = self._start(question)
        model = self.side.model(received["model"], kept)
        return Parcel(b"", {"accuracy": self.executor.evaluate(model, self.client)["acc"]})

    def _start(self, question: Parcel) -> tuple[Parts, Kept, KeptStates]:
        if question.values["client"] != self.client:
            asked = question.values["client"]
            raise ValueError(f"asked as client {asked}, but {self.folder} is of client {self.client}")
        states = KeptStates(self.folder, str(question.values["run"]), self.kept_like)
        return self.side.receive(question.packet), states.read(int(question.values["last"])), states


def answer(reply: Reply) -> Parcel:
    """What of a reply travels: the packet, and figures of the training. What is kept does not."""
    result = reply.result
    values = {
        "num_examples": result.num_examples, "num_steps": result.num_steps, "finite": reply.finite,
        "learning_rate_sum": result.learning_rate_sum, "train_loss": result.train_loss, "seconds": result.seconds,
    }  # fmt: skip
    return Parcel(payload(reply.packet), values | ({} if reply.accuracy is None else {"accuracy": reply.accuracy}))


def read_answer(client: int, parcel: Parcel, upload: Parts) -> Reply:
    """The reply at the server's end: with no state of the client's, neither its model nor what it keeps.

    Args:
        upload: any upload of the algorithm's, for its names, shapes and types.

    Raises:
        KeyError, TypeError, ValueError: it is no answer of this version.
    """
    values = dict(parcel.values)
    finite, accuracy = bool(values.pop("finite")), values.pop("accuracy", None)
    result = LocalResult(client=client, state={}, **values)  # type: ignore[arg-type]
    if result.num_examples < 1:
        raise ValueError(f"num_examples={result.num_examples}: must be 1 or more")
    return Reply(result, parcel.packet, upload, finite, Kept(), None if accuracy is None else float(accuracy))
