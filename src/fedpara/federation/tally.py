"""The sums of a round, built up while its clients answer."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

from fedpara.execution.base import FAILURE_KINDS, ClientFailure
from fedpara.federation.client import Report

Awaited = TypeVar("Awaited")


class Tally:
    """Sums over the clients of one round that succeeded, and the failures of the others."""

    def __init__(self) -> None:
        self.trained_scores: list[float] = []
        self.succeeded: list[int] = []
        self.failures: list[ClientFailure] = []
        self.up_bytes: Counter[int] = Counter()  # of uploads that were decoded, by client
        self.down_bytes: Counter[int] = Counter()  # of the broadcast, in each attempt, by client
        self.unused_bytes: Counter[int] = Counter()  # of uploads that were not finite, by client
        self.loss_sum = 0.0
        self.num_examples = 0
        self.busy_seconds = self.wait_seconds = self.train_seconds = 0.0

    def awaited(self, outcomes: Iterator[Awaited]) -> Iterator[Awaited]:
        """Pass the outcomes on, and count the seconds for which the server waits for each."""
        while True:
            start = time.perf_counter()
            outcome = next(outcomes, None)
            self.wait_seconds += time.perf_counter() - start
            if outcome is None:
                return
            yield outcome

    def add(self, report: Report) -> None:
        """Add a client that succeeded."""
        self.succeeded.append(report.client)
        if report.score is not None:
            self.trained_scores.append(report.score)
        self.loss_sum += report.train_loss * report.num_examples
        self.num_examples += report.num_examples
        self.busy_seconds += report.seconds

    @property
    def num_clients(self) -> int:
        """The number of clients that succeeded."""
        return len(self.succeeded)

    def outcomes(self) -> dict[str, int]:
        """Numbers of clients by what became of them."""
        kinds = Counter(failure.kind for failure in self.failures)
        return {"succeeded": self.num_clients, **{kind: kinds[kind] for kind in FAILURE_KINDS}}

    def __str__(self) -> str:
        """The failures by reason: ` | dropped: 3, 17 | crashed (RuntimeError: ...): 9`."""
        by_reason: dict[str, list[str]] = {}
        for failure in self.failures:
            by_reason.setdefault(failure.reason, []).append(str(failure.client))
        return "".join(f" | {reason}: {', '.join(clients)}" for reason, clients in sorted(by_reason.items()))
