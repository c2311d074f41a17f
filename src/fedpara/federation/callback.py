"""Callbacks of a federation: they watch, log and store."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedpara.federation.client import Broadcast, Reply, Report
from fedpara.record import ClientRecord, RoundRecord

if TYPE_CHECKING:
    from fedpara.federation.round import Federation

Outcome = Literal["finished", "failed", "interrupted"]


class FederationCallback:
    """Base of objects that watch, log or store a run. Every method does nothing by default.

    Each method may call `federation.stop(reason)`. The run then ends in good order after the current round.

    Attributes:
        shows_clients: whether it records figures of single clients, which differential privacy does not cover.
    """

    shows_clients: bool = False

    def on_fit_start(self, federation: "Federation") -> None:
        """Before the first round; a resumed federation has `round` > 0."""

    def on_broadcast(self, federation: "Federation", cohort: Sequence[int], broadcast: Broadcast) -> None:
        """When a round begins, with what its clients are sent."""

    def on_upload(self, federation: "Federation", reply: Reply) -> None:
        """When a client's reply has come, before it is decoded; with `retries` also of attempts that fail."""

    def on_client_end(self, federation: "Federation", report: Report) -> None:
        """After each client's training that succeeded."""

    def on_client_record(self, federation: "Federation", record: ClientRecord) -> None:
        """Once for each client of the round, when it has succeeded, or after its last attempt has failed."""

    def on_round_end(self, federation: "Federation", record: RoundRecord) -> None:
        """After each round; `federation.round` and `federation.server` are those of the finished round."""

    def on_checkpoint(self, federation: "Federation", path: Path) -> None:
        """When a checkpoint is whole on the disk, in a temporary file, just before it replaces the one before it."""

    def on_fit_end(self, federation: "Federation", outcome: Outcome) -> None:
        """After the last round, an error or an interruption."""
