"""Forwards each round to Lightning loggers (W&B, TensorBoard, MLflow, ...)."""

import copy
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pytorch_lightning.loggers import Logger

from fedpara.callbacks.wandb import FederationWandbLogger
from fedpara.federation import Federation, FederationCallback, Outcome
from fedpara.metric import Metric
from fedpara.record import RoundRecord, counted
from fedpara.runs import CLIENT_TABLE, Run
from fedpara.state import load_state

FOLDER = "hub"  # of the model that is logged, in the run folder; eval.py export=hub writes the same


class LoggerForwarding(FederationCallback):
    """Calls `log_metrics(step=round)` of each logger once per round, and tells it how the run ended.

    Args:
        loggers: started loggers, which are closed here.
        folder: the run folder; its metrics.csv has the earlier rounds of a resumed run.
    """

    def __init__(self, loggers: Sequence[Logger], folder: Path) -> None:
        self.loggers: Sequence[Logger] = loggers
        self.folder = folder

    @property
    def _of_wandb(self) -> list[FederationWandbLogger]:
        """The loggers that take more than rows."""
        return [logger for logger in self.loggers if isinstance(logger, FederationWandbLogger)]

    def judge_by(self, judged: Metric, headline: Metric) -> None:
        """Tell W&B which metric judges the run: its column, and the metric as the module logs it.

        Raises:
            ValueError: the logger has a target that the metric cannot reach.
        """
        for logger in self._of_wandb:
            logger.judge_by(judged, headline)

    def on_fit_start(self, federation: Federation) -> None:
        """Log the earlier rounds that W&B lacks, because a killed process loses W&B's buffer."""
        self.judge_by(federation.judged, federation.headline)
        run = Run(self.folder)
        for logger in self._of_wandb:
            logger.describe(run.summary.get("parameters", {}), run.setting)
            for row in run.rows:
                logger.log_metrics(row)

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Log the round."""
        for logger in self.loggers:
            logger.log_metrics(record.as_row(), step=record.round)
        for ours in self._of_wandb if record.personal_scores else []:
            ours.log_histogram(f"personal/{record.headline.name}", record.personal_scores, record.round)
        if text := _divergence(record):
            self._alert("Clients diverged", f"round {record.round}: {text}", is_failure=False)

    def on_fit_end(self, federation: Federation, outcome: Outcome) -> None:
        """Log the table of clients, if the run has one, and the final model where asked for; close the loggers."""
        error = sys.exc_info()[1]
        try:
            for logger in self._of_wandb:
                logger.log_clients(self.folder / CLIENT_TABLE)
            if outcome == "finished":
                self._log_models(federation)
        finally:
            self._close(outcome, error, f"after {counted(federation.round, 'round')}")

    def _log_models(self, federation: Federation) -> None:
        """Write the folder `hub` in the run folder, and log it to W&B."""
        asked = [logger for logger in self._of_wandb if logger.logs_model]
        if not asked:
            return
        from fedpara.export import Card, data_facts, export_folder  # only then: it imports more than a run needs

        run = Run(self.folder)
        metrics = run.summary.get("metrics", {}).get("last", {})
        card = Card(run, data_facts(federation.executor.datamodule), metrics)
        network = copy.deepcopy(federation.executor.module.network)  # a merged network cannot be trained any further
        load_state(network, federation.model())
        export_folder(network, self.folder / FOLDER, card)
        for logger in asked:
            logger.log_model_folder(self.folder / FOLDER, {**card.config(), "metrics": metrics})

    def __enter__(self) -> "LoggerForwarding":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the loggers of a run that ended before its first round; otherwise they are closed already.

        A run that could not be resumed keeps the state in its folder.
        """
        before = Run(self.folder).summary.get("state")
        outcome: Outcome = before or ("interrupted" if kind is KeyboardInterrupt else "failed")
        self._close(outcome, error, "before its first round")

    def _alert(self, title: str, text: str, is_failure: bool) -> None:
        for logger in self._of_wandb:
            logger.alert(title, text, is_failure)

    def _close(self, outcome: Outcome, error: BaseException | None, when: str) -> None:
        """Close the loggers with Lightning's word for the outcome; a failure is told with its error."""
        if outcome == "failed":
            title = "Run diverged" if isinstance(error, FloatingPointError) else "Run failed"
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:600]
            self._alert(title, f"{self.folder.name} {when}: {cause}", is_failure=True)
        for logger in self.loggers:
            logger.finalize({"finished": "success", "failed": "failed", "interrupted": "aborted"}[outcome])
        self.loggers = []


def _divergence(record: RoundRecord) -> str:
    """What diverged in a round that still counted; empty if nothing did."""
    if diverged := record.clients.get("diverged"):
        of = counted(record.num_clients, "client")
        return f"{diverged} of {of} returned NaN or infinite parameters; try a smaller model.optimizer.lr"
    hidden = record.privacy and math.isnan(record.train_loss)  # it is a figure of single clients
    if record.clients.get("succeeded") and not math.isfinite(record.train_loss) and not hidden:
        return f"the training loss is {record.train_loss}; try a smaller model.optimizer.lr"
    return ""
