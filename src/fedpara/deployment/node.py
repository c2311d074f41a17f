"""One client on its own machine: its data, its states, and its answers to the server."""

from dataclasses import replace
from math import isfinite
from pathlib import Path

from fedpara.app.build import build
from fedpara.app.composition import compose
from fedpara.deployment.folders import localised, owner
from fedpara.deployment.kept import KeptStates
from fedpara.deployment.parcel import Parcel, answer
from fedpara.execution import ClientFailure
from fedpara.federation import Broadcast, Kept, score


class Node:
    """Answers the server's questions with the client's half of a round.

    Args:
        overrides: the experiment, as typed behind `python src/train.py`.
        folder: the client's data, as `python deploy/split.py` writes them, and its states. The node reads nothing else,
            and writes nowhere else.

    Raises:
        UnusableFile: the folder holds no client's data.
        ValueError: the network cannot be trained on them.
    """

    def __init__(self, overrides: list[str], folder: Path) -> None:
        self.folder, self.client = folder, owner(folder)
        cfg = localised(compose(overrides), folder, self.client)
        experiment, federation = build(cfg)
        experiment.datamodule.setup()
        experiment.datamodule.to(experiment.executor.device)
        experiment.executor.prepare()
        self.executor, self.side = experiment.executor, federation.client_side

    def train(self, question: Parcel) -> Parcel:
        """Train from the broadcast and the client's states. The new states are on the disk before the answer leaves.

        Raises:
            Exception: any error of the training; the server hears of it.
        """
        broadcast, kept, states = self._start(question)
        task = self.side.task(self.client, broadcast, kept, int(question.values["attempt"]))
        (outcome,) = self.executor.run([task])
        if isinstance(outcome, ClientFailure):
            raise outcome.error or RuntimeError(outcome.reason)
        reply, kept = self.side.reply(outcome, broadcast, kept)
        if reply.report.finite:
            states.write(kept, broadcast.round + 1, int(question.values["last"]))
        if question.values["test"] and reply.report.finite:
            tested = score(self.executor, outcome.state, self.client)
            if isfinite(tested):  # the server refuses other scores, and the round would lose the training with it
                reply = replace(reply, report=replace(reply.report, score=tested))
        return answer(reply)

    def test(self, question: Parcel) -> Parcel:
        """The headline metric of the model from which the client would start, on its own test distribution."""
        broadcast, kept, _ = self._start(question)
        model = self.side.model(broadcast.received["model"], kept)
        return Parcel(b"", {"score": score(self.executor, model, self.client)})

    def _start(self, question: Parcel) -> tuple[Broadcast, Kept, KeptStates]:
        asked = question.values
        if asked["client"] != self.client:
            raise ValueError(f"asked as client {asked['client']}, but {self.folder} is of client {self.client}")
        states = KeptStates(self.folder, str(asked["run"]), self.side.layouts)
        kept = states.read(int(asked["last"]))
        return self.side.receive_own(question.packet, int(asked["round"]), kept), kept, states
