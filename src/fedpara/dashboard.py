"""The project's W&B workspace as code: the figures and the table of a report, then details of runs."""

from collections.abc import Sequence
from typing import Any

from wandb_workspaces import expr
from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports.v2 import interface as wr

from fedpara.cost import SPEEDS_MBPS
from fedpara.metric import Metric
from fedpara.record import ACCURACY, COSTS, target_group

GAMMA, SETTING = wr.Config("factorization.gamma"), wr.Config("setting")
SENT = "sent, both ways, all clients (GB)"


def workspace(
    entity: str,
    project: str,
    name: str = "FedPara",
    headline: Metric = ACCURACY,
    targets: Sequence[float] = (),
    personal: bool = False,
) -> ws.Workspace:
    """The figures of a report, the costs to each target, then ranks, traffic, clients' own models, and training.

    Runs are grouped by their setting, which is all that differs except the seed. The table of runs has the columns of
    the report's table of settings.

    Args:
        headline: the metric that judges the runs, as their module logs it.
        targets: values of it that runs were told in `logger.wandb.target`.
        personal: whether the clients' own models are judged, because a part of the model stays with them.
    """
    judged = headline.judged(personal)
    best = f"{judged.name}.{'max' if headline.higher_is_better else 'min'}"
    last = f"{judged.name}.last"
    groups = [target_group(target, judged) for target in targets]
    measured = ["parameters/shared", "parameters/share_of_dense", last, best, "comm/total_gb"]
    measured += [f"{group}/{cost}" for group in groups for cost in COSTS]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            _answer(headline, judged, last),
            *(_to_target(target, group, judged) for target, group in zip(targets, groups, strict=True)),
            _ranks(judged, best), _traffic(), _clients(headline), _comparison(best, groups), _training(),
        ],
        settings=ws.WorkspaceSettings(x_axis="round", max_runs=50),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config("setting")],
            pinned_columns=["run:displayName", "run:state", "config:setting.value", "config:seed.value"]
            + [f"summary:{metric}" for metric in measured],
        ),
    )  # fmt: skip


def _answer(headline: Metric, judged: Metric, last: str) -> ws.Section:
    """The report's figures: over GB, over rounds, and against the size of what travels."""
    word = judged.label.capitalize()
    share = wr.SummaryMetric("parameters/share_of_dense")
    return _section(
        f"{word} for the bytes sent",
        _line(f"{word} against GB", f"{headline.name}_over_gb", x="comm/total_gb", label=SENT, grouped=True),
        _line(f"{word} against rounds", judged.name, grouped=True),
        wr.ScatterPlot(title=f"Last {judged.label} against parameters that travel", x=share, y=wr.SummaryMetric(last)),
    )


def _to_target(target: float, group: str, judged: Metric) -> ws.Section:
    """The report's costs until a target was first reached, as bars: the mean over seeds and its standard error."""
    words = ["Rounds", "GB", *(f"Minutes at {speed} Mbps" for speed in SPEEDS_MBPS), "MJ"]
    bars = [
        wr.BarPlot(title=f"{word} to {judged.target(target)}", metrics=[f"{group}/{cost}"], **GROUPED)
        for word, cost in zip(words, COSTS, strict=True)
    ]
    return _section(f"Cost to {judged.label} {judged.target(target)}", *bars)


def _ranks(judged: Metric, best: str) -> ws.Section:
    return _section(
        "Rank sweep",
        wr.ScatterPlot(title=f"Best {judged.label} against gamma", x=GAMMA, y=wr.SummaryMetric(best)),
        wr.ScatterPlot(title="GB against gamma", x=GAMMA, y=wr.SummaryMetric("comm/total_gb")),
    )


def _traffic() -> ws.Section:
    seconds = [f"cost/round_s_{speed}mbps" for speed in SPEEDS_MBPS]
    return _section(
        "Traffic and time",
        _line("Bytes of a round, up and down", "comm/up_bytes", "comm/down_bytes"),
        _line(f"Seconds of a round over {', '.join(map(str, SPEEDS_MBPS))} Mbps", *seconds),
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


def _comparison(best: str, groups: Sequence[str]) -> ws.Section:
    columns: list[Any] = [
        GAMMA,
        wr.Config("federation.clients_per_round"),
        wr.Config("trainer.max_epochs"),
        wr.Config("seed"),
    ]
    columns += [wr.SummaryMetric(name) for name in ("comm/total_gb", *(f"{group}/gb" for group in groups), best)]
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
    columns = min(len(panels), 3)
    layout = ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns) if is_open else 1)
    return ws.Section(name=name, panels=list(panels), is_open=is_open, layout_settings=layout)


# W&B has no 95 % interval: it draws the standard error of the mean
GROUPED: Any = {"groupby": SETTING, "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}


def _line(title: str, *metrics: str, x: str = "round", label: str = "round", grouped: bool = False) -> wr.LinePlot:
    return wr.LinePlot(title=title, x=x, y=list(metrics), title_x=label, **GROUPED if grouped else {})
