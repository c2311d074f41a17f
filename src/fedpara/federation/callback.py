"""What may be done beside a run."""

from typing import TYPE_CHECKING, Literal

from fedpara.federation.client import Report
from fedpara.record import RoundRecord

if TYPE_CHECKING:
    from fedpara.federation.round import Federation

Outcome = Literal["finished", "failed", "interrupted"]


class FederationCallback:
    """What may be done beside a run: watch, log, store. Every method does nothing by default.

    Any of them may call `federation.stop(reason)`: the run then ends in good order after the round at hand.
    """

    def on_fit_start(self, federation: "Federation") -> None:
        """Before the first round; a resumed federation has `round` > 0."""

    def on_client_end(self, federation: "Federation", report: Report) -> None:
        """After one client's training, where it succeeded."""

    def on_round_end(self, federation: "Federation", record: RoundRecord) -> None:
        """After one round; `federation.round` and `federation.server` are those of the finished round."""

    def on_fit_end(self, federation: "Federation", outcome: Outcome) -> None:
        """After the last round, an error or an interruption."""
