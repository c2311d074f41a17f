"""The project's W&B workspace as code, with the most wanted section first."""

from typing import Any

from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports.v2 import interface as wr

from fedpara.metric import Metric
from fedpara.record import ACCURACY

GAMMA = wr.Config("factorization.gamma")
TO_TARGET = wr.SummaryMetric("gb_to_target")


def workspace(entity: str, project: str, name: str = "FedPara", headline: Metric = ACCURACY) -> ws.Workspace:
    """Sections on accuracy, ranks, traffic, clients' own models, differences between runs, and training.

    Args:
        headline: the metric that judges the runs, as their module logs it.
    """
    best = f"test/{headline.name}.{'max' if headline.higher_is_better else 'min'}"
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            _answer(headline), _ranks(headline, best), _traffic(), _clients(headline), _comparison(best), _training(),
        ],
        settings=ws.WorkspaceSettings(x_axis="round", max_runs=50),
        runset_settings=ws.RunsetSettings(
            pinned_columns=[
                "run:displayName", "run:state", "config:factorization.gamma", "config:seed", f"summary:{best}",
                "summary:comm/total_gb", "summary:gb_to_target",
            ],
        ),
    )  # fmt: skip


def _answer(headline: Metric) -> ws.Section:
    word, over_gb = headline.label.capitalize(), f"{headline.name}_over_gb"
    return _section(
        f"{word} for the bytes sent",
        _line(f"{word} against GB", over_gb, x="comm/total_gb", label="sent, both ways, all clients (GB)"),
        _line(f"{word} against rounds", f"test/{headline.name}"),
    )


def _ranks(headline: Metric, best: str) -> ws.Section:
    return _section(
        "Rank sweep",
        wr.ScatterPlot(title=f"Best {headline.label} against gamma", x=GAMMA, y=wr.SummaryMetric(best)),
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


def _clients(headline: Metric) -> ws.Section:
    own, worst = headline.name, headline.worst_percentile
    words = f"mean and {'tenth' if worst == 10 else 'ninetieth'} percentile"
    return _section(
        "Clients' own models",
        _line(f"Personal {headline.label}: {words}", f"personal/{own}_mean", f"personal/{own}_p{worst}"),
        _line(f"As trained: {words}", f"personal/trained_{own}_mean", f"personal/trained_{own}_p{worst}"),
    )


def _comparison(best: str) -> ws.Section:
    columns: list[Any] = [
        GAMMA,
        wr.Config("federation.clients_per_round"),
        wr.Config("trainer.max_epochs"),
        wr.Config("seed"),
    ]
    columns += [wr.SummaryMetric("comm/total_gb"), TO_TARGET, wr.SummaryMetric(best)]
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
