"""The project's W&B workspace as code, with the most wanted section first."""

from typing import Any

from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports.v2 import interface as wr

ACCURACY = wr.SummaryMetric("test/acc.max")
GAMMA = wr.Config("factorization.gamma")
TO_TARGET = wr.SummaryMetric("gb_to_target")


def workspace(entity: str, project: str, name: str = "FedPara") -> ws.Workspace:
    """Sections on accuracy, ranks, traffic, clients' own models, differences between runs, and training."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[_answer(), _ranks(), _traffic(), _clients(), _comparison(), _training()],
        settings=ws.WorkspaceSettings(x_axis="round", max_runs=50),
        runset_settings=ws.RunsetSettings(
            pinned_columns=[
                "run:displayName", "run:state", "config:factorization.gamma", "config:seed", "summary:test/acc.max",
                "summary:comm/total_gb", "summary:gb_to_target",
            ],
        ),
    )  # fmt: skip


def _answer() -> ws.Section:
    return _section(
        "Accuracy for what was sent",
        _line("Accuracy against GB", "acc_over_gb", x="comm/total_gb", label="sent, both ways, all clients (GB)"),
        _line("Accuracy against rounds", "test/acc"),
    )


def _ranks() -> ws.Section:
    return _section(
        "Rank sweep",
        wr.ScatterPlot(title="Best accuracy against gamma", x=GAMMA, y=ACCURACY),
        wr.ScatterPlot(title="GB to target (logger.wandb.target) against gamma", x=GAMMA, y=TO_TARGET),
    )


def _traffic() -> ws.Section:
    seconds = [f"cost/round_s_{speed}mbps" for speed in (2, 10, 50)]
    return _section(
        "Traffic and time",
        _line("Bytes of a round, up and down", "comm/up_bytes", "comm/down_bytes"),
        _line("Seconds of a round over 2, 10, 50 Mbps", *seconds),
        _line("Energy of the traffic so far (MJ)", "cost/total_mj"),
    )


def _clients() -> ws.Section:
    return _section(
        "Clients' own models",
        _line("Personal accuracy: mean and tenth percentile", "personal/acc_mean", "personal/acc_p10"),
        _line("As trained: mean and tenth percentile", "personal/trained_acc_mean", "personal/trained_acc_p10"),
    )


def _comparison() -> ws.Section:
    columns: list[Any] = [
        GAMMA,
        wr.Config("federation.clients_per_round"),
        wr.Config("trainer.max_epochs"),
        wr.Config("seed"),
    ]
    columns += [wr.SummaryMetric("comm/total_gb"), TO_TARGET, ACCURACY]
    return _section(
        "What sets runs apart",
        wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns]),
        wr.RunComparer(diff_only="split"),
    )


def _training() -> ws.Section:
    return _section(
        "Training",
        _line("Training loss", "train/loss"),
        _line("Test loss", "test/loss"),
        _line("Seconds of a round", "time/round_s"),
        _line("Workers' idle seconds of a round", "time/idle_s"),
        is_open=False,
    )


def _section(name: str, *panels: Any, is_open: bool = True) -> ws.Section:
    layout = ws.SectionLayoutSettings(columns=min(len(panels), 3), rows=1)
    return ws.Section(name=name, panels=list(panels), is_open=is_open, layout_settings=layout)


def _line(title: str, *metrics: str, x: str = "round", label: str = "round") -> wr.LinePlot:
    return wr.LinePlot(title=title, x=x, y=list(metrics), title_x=label)
