"""Forwards each round to Lightning loggers (W&B, TensorBoard, MLflow, ...)."""

from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.loggers import Logger

from fedpara.callbacks.wandb import FederationWandbLogger
from fedpara.federation import Federation, FederationCallback, Outcome
from fedpara.metric import Metric
from fedpara.record import RoundRecord
from fedpara.runs import Run


class LoggerForwarding(FederationCallback):
    """Calls `log_metrics(step=round)` of each logger once per round, and tells it how the run ended.

    Args:
        loggers: started loggers, which are closed here.
        folder: the run folder; its metrics.csv has the earlier rounds of a resumed run.
    """

    def __init__(self, loggers: Sequence[Logger], folder: Path) -> None:
        self.loggers: Sequence[Logger] = loggers
        self.folder = folder

    def judge_by(self, judged: Metric, headline: Metric) -> None:
        """Tell W&B which metric judges the run: its column, and the metric as the module logs it.

        Raises:
            ValueError: the logger has a target that the metric cannot reach.
        """
        for logger in self.loggers:
            if isinstance(logger, FederationWandbLogger):
                logger.judge_by(judged, headline)

    def on_fit_start(self, federation: Federation) -> None:
        """Log the earlier rounds that W&B lacks, because a killed process loses W&B's buffer."""
        self.judge_by(federation.judged, federation.headline)
        for logger in self.loggers:
            if isinstance(logger, FederationWandbLogger):
                for row in Run(self.folder).rows:
                    logger.log_metrics(row)

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Log the round."""
        for logger in self.loggers:
            logger.log_metrics(record.as_row(), step=record.round)
            if record.personal_scores and isinstance(logger, FederationWandbLogger):
                logger.log_histogram(f"personal/{record.headline.name}", record.personal_scores, record.round)

    def on_fit_end(self, federation: Federation, outcome: Outcome) -> None:
        """Close the loggers."""
        self._close(outcome)

    def __enter__(self) -> "LoggerForwarding":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Close the loggers of a run that ended before its first round; otherwise they are closed already.

        A run that could not be resumed keeps the state in its folder.
        """
        before = Run(self.folder).summary.get("state")
        self._close(before or ("interrupted" if kind is KeyboardInterrupt else "failed"))

    def _close(self, outcome: Outcome) -> None:
        """Close the loggers with Lightning's word for the outcome."""
        for logger in self.loggers:
            logger.finalize({"finished": "success", "failed": "failed", "interrupted": "aborted"}[outcome])
        self.loggers = []
