"""The table of the paper's claims: what it prints beside our differences, with their intervals, seeds and hours."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedpara.report.differences import Difference, difference
from fedpara.report.settings import Estimate, Setting
from fig5 import METHODS, SETTINGS
from website.cells import (
    EXTRAS,
    estimate,
    estimate_of,
    found,
    paper_of_table_3,
    printed_accuracies,
    printed_costs,
    rounds_of,
    signed,
    table,
)

USUAL = "FedPara 0.1"


@dataclass(frozen=True)
class Claim:
    """A difference that the paper prints or draws, and the runs that measure it here.

    Attributes:
        text: the two that are compared.
        source: the paper's table or figure, and its set-up.
        printed: the paper's difference in points; NaN where it has none.
        page: the page of the runs, in this folder.
        folder: the runs, below `results/`.
        pair: the settings of the difference.
        metric: the column that is compared.
        drawn: how the paper draws the first beside the second, without a number: "above" or "about level".
        is_none: whether the paper says that there is no difference, as its own is within the interval.
    """

    text: str
    source: str
    printed: float
    page: str
    folder: str
    pair: tuple[str, str]
    metric: str = "test/acc"
    drawn: str = ""
    is_none: bool = False

    def row(self) -> list[str]:
        """The cells of the table."""
        of = found(self.folder, self.metric)
        ours, theirs = (of[name] for name in self.pair)
        one = difference(ours, theirs)
        paper = self.drawn or ("" if math.isnan(self.printed) else signed(self.printed))
        if self.is_none:
            paper = f"none ({signed(self.printed, 2)})"
        where = f"[{rounds_of(ours)} rounds, {one.num_runs[0]} seed{'s' * (one.num_runs[0] > 1)}]({self.page})"
        return [self.text, self.source, paper, estimate_of(one), where, hours([ours, theirs]), self.verdict(one)]

    def verdict(self, one: Difference) -> str:
        """Whether our difference is the paper's: its sign, and whether the printed one is in our interval."""
        if self.is_none:
            return "**a difference**" if one.settled else "none either"
        if not one.settled or math.isnan(self.printed):
            return one.verdict
        if (one.mean > 0) != (self.printed > 0):
            return "**the opposite**"
        if self.drawn or one.low <= self.printed <= one.high:
            return "yes"
        return f"the sign, but {'more' if abs(one.mean) > abs(self.printed) else 'less'}"


def hours(settings: Sequence[Setting]) -> str:
    """Wall hours of the runs of some settings, of one process each."""
    times = [run.seconds for setting in settings for run in setting.counted]
    return f"{sum(time or 0.0 for time in times) / 3600:.1f}"


def of_the_paper() -> Iterator[Claim]:
    """The claims in the order of the paper."""
    table_2, all_gammas = (printed_accuracies(name, "CIFAR-10 IID") for name in ("Table 2", "Table 9"))
    ours = table_2[USUAL]
    yield Claim(
        "FedPara − low rank of its size", "Table 2, CIFAR-10 IID", ours - table_2["low rank"], "cifar10.md",
        "cifar10_budget", ("fedpara", "low_rank"),
    )  # fmt: skip
    yield Claim(
        "FedPara, γ = 0.1 − dense", "Tables 2, 9, CIFAR-10 IID", ours - all_gammas["original"], "cifar10.md",
        "cifar10_budget", ("fedpara", "dense"),
    )  # fmt: skip
    yield Claim(
        "FedPara, ranks split over the layers − γ = 0.1, same bytes", "not in the paper", math.nan, "cifar10.md",
        "cifar10_budget", ("equal", "fedpara"),
    )  # fmt: skip
    yield Claim(
        "FedPara within 12 % of the bytes − dense", "not in the paper", math.nan, "cifar10.md#closing-the-gap",
        "cifar10_gap", ("fedpara4_first", "dense"),
    )  # fmt: skip
    table_3 = paper_of_table_3()
    for name, shown in {"fedprox": "FedProx", "scaffold": "SCAFFOLD", "feddyn": "FedDyn", "fedadam": "FedAdam"}.items():
        printed = table_3[name] - table_3["fedavg"]
        pair = (name, "fedavg")
        yield Claim(
            f"FedPara + {shown} − FedAvg",
            "Table 3, IID; here Dirichlet(0.5)",
            printed,
            "algorithms.md",
            "table3_two_cores",
            pair,
        )
    baseline, *extras = zip(EXTRAS, printed_accuracies("Table 4", "CIFAR-10 IID").values(), strict=True)
    for name, printed in extras:
        yield Claim(
            f"{EXTRAS[name]} − neither tanh nor correction", "Table 4, CIFAR-10 IID", printed - baseline[1],
            "initialisation.md#table-4", "table4_two_cores", (name, baseline[0]), is_none=True,
        )  # fmt: skip
    for scenario, folder in enumerate(SETTINGS, start=1):
        for other in ("local", "fedavg", "fedper"):
            level = scenario == 3 and other != "fedavg"
            yield Claim(
                f"pFedPara − {METHODS[other]}", f"Fig. 5, scenario {scenario}", math.nan if level else 1,
                "personalisation.md", f"fig5/final/{folder}", ("pfedpara", other), "personal/acc_mean",
                drawn="about level" if level else "above",
            )  # fmt: skip
    table_11 = printed_accuracies("Table 11", "Shakespeare non-IID")
    for folder, rates in {"shakespeare_two_cores": "the paper's rate", "shakespeare_own_rates": "own rates"}.items():
        for name, shown, text in (("dense", "original", "dense"), ("low_rank", "low rank, LSTM", "low rank")):
            printed = table_11["FedPara 0.0"] - table_11[shown]
            what = f"FedPara − {text}, LSTM, {rates}"
            yield Claim(what, "Table 11, non-IID", printed, "shakespeare.md", folder, ("fedpara", name))


def cost() -> list[str]:
    """The row of Fig. 3g: how many times fewer bytes FedPara takes to a target."""
    of, printed = found("cifar10_budget"), printed_costs("Fig. 3g", "CIFAR-10 IID")
    pair = [of["dense"], of["fedpara"]]
    by_seed = [sorted(zip([run.seed or "" for run in one.counted], one.cost(0.5, 10), strict=True)) for one in pair]
    costs = [[cost for _, cost in half] for half in by_seed]
    times_fewer = Estimate.of([dense.num_bytes / ours.num_bytes for dense, ours in zip(*costs, strict=True)])
    where = f"[{rounds_of(of['dense'])} rounds, {len(of['dense'].counted)} seeds](cifar10.md)"
    times = f"{printed['original'] / printed[USUAL]:.1f} times, to 80 %"
    low, high = (times_fewer.mean + sign * times_fewer.half_width for sign in (-1, 1))
    verdict = "yes" if low > 1 else "**the opposite**" if high < 1 else "not settled"
    here = f"{estimate(times_fewer)} times, to 50 %"
    return ["bytes to a target, dense / FedPara", "Fig. 3g, CIFAR-10 IID", times, here, where, hours(pair), verdict]


def claims() -> str:
    """What the paper claims and what our runs show."""
    heads = ["points of accuracy", "in the paper", "there", "here", "runs here", "hours", "shown here?"]
    rows = [claim.row() for claim in of_the_paper()]
    rows.insert(4, cost())  # beside the other claims of CIFAR-10
    return table(heads, rows)
