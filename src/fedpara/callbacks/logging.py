"""Lightning loggers (W&B, TensorBoard, MLflow, ...) as witnesses of a federation."""

from collections.abc import Sequence

from pytorch_lightning.loggers import Logger

from fedpara.callbacks.wandb import FederationWandbLogger
from fedpara.federation import Federation, FederationCallback, Outcome
from fedpara.record import RoundRecord


class LoggerForwarding(FederationCallback):
    """One `log_metrics(step=round)` a round to each logger, and how the run ended."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = loggers

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Log the round."""
        for logger in self.loggers:
            logger.log_metrics(record.as_row(), step=record.round)
            if record.personal_accuracy and isinstance(logger, FederationWandbLogger):
                logger.log_histogram("personal/acc", record.personal_accuracy, record.round)

    def on_fit_end(self, federation: Federation, outcome: Outcome) -> None:
        """Close the loggers, in Lightning's words for how it ended."""
        for logger in self.loggers:
            logger.finalize({"finished": "success", "failed": "failed", "interrupted": "aborted"}[outcome])
