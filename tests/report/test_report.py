"""Reports from run folders: settings over seeds, costs to target, the paper's numbers, one page; status of runs."""

import base64
import csv
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from omegaconf import OmegaConf

from fedpara.app import report as program
from fedpara.app import status as status_program
from fedpara.app.composition import compose
from fedpara.files import is_reserved, reserve
from fedpara.metric import Metric
from fedpara.record import three_digits
from fedpara.report import charts, common_target, compare, differences, draw, settings, write_report
from fedpara.report import paper as report_paper
from fedpara.report.differences import _partition
from fedpara.report.settings import pareto
from fedpara.report.sweeps import differing_keys
from fedpara.runs import Run, axes, find_runs
from helpers import ROOT
from helpers.cases import thinned

KEPT = ROOT / "results" / "cifar10_two_cores"
CLIENT_BYTES = 250_000


def write_run(folder, accuracies, overrides=None, state="finished", config=None, parameters=250):
    """A run folder of 4 clients a round that each move 250 kB; an accuracy of None is a round that was not tested."""
    folder.mkdir(parents=True)
    if overrides is not None:
        (folder / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {"federation": {"num_rounds": 4}}))
    with (folder / "metrics.csv").open("w") as stream:
        names = ["round", "test/acc", "comm/total_bytes", "time/round_s"]
        names += [f"cost/round_s_{speed}mbps" for speed in (2, 10, 50)]
        writer = csv.writer(stream)
        writer.writerow(names)
        for number, accuracy in enumerate(accuracies, start=1):
            shown = "" if accuracy is None else accuracy
            seconds = [8 * CLIENT_BYTES / (speed * 1e6) for speed in (2, 10, 50)]
            writer.writerow([number, shown, 4 * CLIENT_BYTES * number, 2.5, *seconds])
    sizes = {"dense": 1000, "factorized": parameters, "shared": parameters, "personal": 0}
    (folder / "summary.json").write_text(json.dumps({"state": state, "rounds": len(accuracies), "parameters": sizes}))
    return Run(folder)


@pytest.fixture
def sweep(tmp_path):
    """Two gammas, two seeds each, one of them interrupted after its first round."""
    write_run(tmp_path / "gamma=0.2_seed=0", [None, 0.5, None, 0.7], ["factorization.gamma=0.2", "seed=0"])
    write_run(tmp_path / "gamma=0.2_seed=1", [None, 0.3, None, 0.9], ["factorization.gamma=0.2", "seed=1"])
    write_run(tmp_path / "gamma=0.10_seed=0", [0.6, 0.6, 0.6, 0.4], ["factorization.gamma=0.10", "seed=0"])
    write_run(tmp_path / "gamma=0.10_seed=1", [0.1], ["factorization.gamma=0.10", "seed=1"], state="interrupted")
    return tmp_path


def test_settings_are_means_over_finished_seeds_with_their_interval(sweep):
    """Student's t with one degree of freedom: 12.706 x sqrt(2) x 10 / sqrt(2) = 127.06 for 70 and 90 %."""
    runs = find_runs(sweep)
    assert list(axes(runs)) == ["gamma", "seed"]
    low, high = settings(runs)
    assert (low.label, high.label) == ("gamma=0.10", "gamma=0.2")
    assert high.mean_curve.tolist() == [[2, 0.002, pytest.approx(40)], [4, 0.004, pytest.approx(80)]]
    assert high.last.mean == pytest.approx(80)
    assert high.last.half_width == pytest.approx(127.06, abs=0.01)
    assert [run.name for run in low.counted] == ["gamma=0.10_seed=0"]
    assert (low.last.mean, low.best.mean, low.ratio) == (pytest.approx(40), pytest.approx(60), 0.25)
    assert common_target([low, high]) == 0.6
    (first, second) = high.cost(0.6, 10)
    assert (first.rounds, first.num_bytes, first.seconds) == (4, 4_000_000, pytest.approx(4 * 0.2))
    assert second.rounds == 4
    assert low.cost(0.7, 10) == []


def of_folders(root, names, **options):
    """Run folders without overrides.yaml."""
    for name in names:
        write_run(root / name, [0.5], **options)
        (root / name / "overrides.yaml").unlink(missing_ok=True)


def test_runs_of_one_name_in_several_folders_are_several_settings(tmp_path):
    of_folders(tmp_path, ["femnist/fedavg-0", "femnist/fedavg-1", "mnist/fedavg-0", "mnist/fedavg-1"])
    found = {setting.label: len(setting.runs) for setting in settings(find_runs(tmp_path))}
    assert found == {"femnist/fedavg": 2, "mnist/fedavg": 2}
    assert [setting.label for setting in settings(find_runs(tmp_path / "mnist"))] == ["fedavg"]


def with_rate(rate, seed, **federation):
    return {"model": {"optimizer": {"lr": rate}}, "federation": {"num_rounds": 4} | federation, "seed": seed}


def test_runs_that_differ_in_what_decides_a_result_are_no_seeds_of_one_setting(tmp_path):
    """The overrides are the same, but a file of the configuration was edited; machine and form do not matter."""
    for seed, config in enumerate([with_rate(0.1, 0), with_rate(0.10, 1, eval_every=2), with_rate(0.2, 2), {}]):
        write_run(tmp_path / f"run-{seed}", [0.5, 0.6], [f"seed={seed}"], config=config)
    found = [(one.label, [run.seed for run in one.runs]) for one in settings(find_runs(tmp_path))]
    assert found == [("model.optimizer.lr=0.1", ["0", "1", "3"]), ("model.optimizer.lr=0.2", ["2"])]


NOISE = {"_target_": "fedpara.privacy.Gaussian", "target_epsilon": 2}


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{"privacy": {}}, {"privacy": NOISE}], ["privacy=off", "privacy=Gaussian"]),
        ([{"federation": {"tiers": None}}, {"federation": {"tiers": {"small": 0.5}}}],
         ["federation.tiers=off", "federation.tiers=on"]),
        ([{"algorithm": {}}, {"algorithm": {"prox": 0.1}}, {"algorithm": {"prox": 0.9}}],
         ["algorithm=off, algorithm.prox=off", "algorithm=on, algorithm.prox=0.1", "algorithm=on, algorithm.prox=0.9"]),
        ([{}, {"model": {"prox": 0.1}}, {"model": {"prox": 0.9}}], ["model.prox=0.1", "model.prox=0.9"]),
        ([{"federation": {"num_rounds": n, "lr_schedule": "cosine"}} for n in (4, 8)],
         ["federation.num_rounds=4", "federation.num_rounds=8"]),
        ([{"federation": {"num_rounds": n}, "privacy": NOISE} for n in (4, 8)],
         ["federation.num_rounds=4", "federation.num_rounds=8"]),
        ([{"federation": {"num_rounds": n}} for n in (4, 8)], ["all runs"]),
        ([{"algorithm": {"seed": n}, "privacy": None} for n in (0, 1)] + [{"privacy": {}}], ["all runs"]),
        ([{"privacy": {}}, {"privacy": None}, {"privacy": NOISE}], ["privacy=off", "privacy=Gaussian"]),
    ],
)  # fmt: skip
def test_what_parts_settings_and_what_does_not(tmp_path, changes, labels):
    for seed, change in enumerate(changes):
        write_run(tmp_path / f"run-{seed}", [0.5], [f"seed={seed}"], config={"seed": seed} | change)
    assert [one.label for one in settings(find_runs(tmp_path))] == labels


def test_a_key_that_parts_a_setting_does_not_hide_a_typed_one_of_the_same_word(tmp_path):
    for seed, (typed, own) in enumerate([(0.1, 0.01), (0.1, 0.1), (1.0, 0.01), (1.0, 0.1)]):
        config = {"seed": seed, "partition": {"alpha": typed}, "algorithm": {"alpha": own}}
        write_run(tmp_path / f"run-{seed}", [0.5], [f"partition.alpha={typed}", f"seed={seed}"], config=config)
    assert [one.label for one in settings(find_runs(tmp_path))] == [
        f"alpha={typed}, algorithm.alpha={own}" for typed, own in [(0.1, 0.01), (0.1, 0.1), (1.0, 0.01), (1.0, 0.1)]
    ]


def test_relative_and_absolute_folders_go_together(tmp_path, monkeypatch):
    of_folders(tmp_path, ["a/dense-0", "b/dense-1"])
    monkeypatch.chdir(tmp_path)
    found = settings([*find_runs(Path("a")), *find_runs(tmp_path / "b")])
    assert [one.label for one in found] == ["a/dense", "b/dense"]


@pytest.mark.usefixtures("without_pictures")
def test_unfinished_seeds_without_a_common_round_have_no_number(tmp_path):
    write_run(tmp_path / "a" / "run-0", [None, 0.5], ["seed=0"], state="interrupted")
    write_run(tmp_path / "a" / "run-1", [0.4, None], ["seed=1"], state="interrupted")
    write_report(find_runs(tmp_path / "a"), tmp_path / "report", "t")
    assert "No setting has a round that all of its seeds tested." in (tmp_path / "report" / "report.md").read_text()


def test_an_unfinished_run_does_not_lower_the_target_of_finished_ones(tmp_path):
    write_run(tmp_path / "a", [0.3, 0.65], ["factorization=dense"])
    write_run(tmp_path / "b", [0.11], ["factorization=fedpara"], state="interrupted")
    assert common_target(settings(find_runs(tmp_path))) == 0.65


def test_a_seed_that_ran_twice_counts_once(tmp_path):
    for name, accuracies in {"a/run-0": [0.4], "b/run-0": [0.3, 0.5], "b/run-1": [0.2, 0.6]}.items():
        write_run(tmp_path / name, accuracies, [f"seed={name[-1]}"])
    (found,) = settings(find_runs(tmp_path))
    assert [run.folder.parent.name for run in found.counted] == ["b", "b"]
    assert (found.last.mean, found.last.num_seeds) == (pytest.approx(55), 2)


def test_a_mean_is_over_rounds_that_all_seeds_tested(tmp_path):
    """A resumed run tests its old last round too."""
    write_run(tmp_path / "run-0", [None, 0.2, 0.9, 0.4], ["seed=0"])
    write_run(tmp_path / "run-1", [None, 0.4, None, 0.6], ["seed=1"])
    (found,) = settings(find_runs(tmp_path))
    assert found.mean_curve[:, [0, 2]].tolist() == [[2, pytest.approx(30)], [4, pytest.approx(50)]]


@pytest.mark.usefixtures("without_pictures")
def test_unfinished_settings_are_marked_and_come_after_finished_ones(tmp_path):
    curves = {"dense": [0.1, 0.3, 0.5], "low_rank": [0.1, 0.2, 0.4]}
    for name, accuracies in curves.items():
        write_run(tmp_path / f"{name}-0", accuracies, [f"factorization={name}", "seed=0"])
    for seed, accuracies in enumerate([[0.6, 0.9, 0.9], [0.6, 0.8]]):
        typed = ["factorization=fedpara", f"seed={seed}"]
        write_run(tmp_path / f"fedpara-{seed}", accuracies, typed, state="interrupted")
    page, _ = made(tmp_path)
    rows = [row[:4] for row in Cells(page).rows if row and row[0] in ("fedpara", "dense", "low_rank")]
    assert rows[:3] == [["dense", "-", "1", "250"], ["low_rank", "-", "1", "250"], ["fedpara", "2 rounds", "2", "250"]]
    assert "Best: factorization=dense, 50.0 %" in page
    (ours,) = (one for one in settings(find_runs(tmp_path)) if one.label == "factorization=fedpara")
    assert (ours.last.mean, ours.best.mean, ours.gigabytes.mean) == (pytest.approx(85), pytest.approx(85), 0.002)
    assert pareto(settings(find_runs(tmp_path))) == {"factorization=dense"}


@pytest.mark.usefixtures("without_pictures")
def test_bytes_to_a_target_that_some_seeds_miss_are_no_mean(tmp_path):
    for name, lasts in {"lucky": (0.7, 0.5, 0.48), "steady": (0.62, 0.62, 0.62), "low": (0.1, 0.1, 0.1)}.items():
        for seed, last in enumerate(lasts):
            write_run(tmp_path / f"{name}-{seed}", [last], [f"factorization={name}", f"seed={seed}"])
    write_report(find_runs(tmp_path), tmp_path / "report", "t", target=0.56)
    text = (tmp_path / "report" / "report.md").read_text()
    assert re.search(r"\| lucky \|.*\| reached by 1 of 3 \| - \|", text)
    assert re.search(r"\| steady \|.*\| 1\.00 \| 1 \|", text)
    assert "sends the least" not in text
    assert common_target(settings(find_runs(tmp_path))) == 0.1


@pytest.mark.usefixtures("without_pictures")
def test_a_setting_without_a_number_is_last_and_beats_nothing(tmp_path):
    for name, value in {"a": math.nan, "b": 0.5, "c": 0.7}.items():
        write_run(tmp_path / name, [0.9, value], [f"factorization={name}"])
    write_report(find_runs(tmp_path), tmp_path / "report", "t")
    assert "Best: factorization=c, 70.0 %" in (tmp_path / "report" / "report.md").read_text()
    assert pareto(settings(find_runs(tmp_path))) == {"factorization=c"}


class Cells(HTMLParser):
    """The text of every table row."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = self.inside or tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def without_pictures(monkeypatch):
    """Pictures take a second of a test that does not look at them."""
    monkeypatch.setattr("fedpara.report.page._picture", lambda *_: b"")


def test_the_page_stands_alone_and_says_the_answer_first(sweep, tmp_path):
    written = write_report(find_runs(sweep), tmp_path / "out", "a <b> sweep")
    pictures = {f"{name}.{kind}" for name in ("accuracy", "cost") for kind in ("png", "csv")}
    assert {path.name for path in written} == {"report.html", "report.md", "report.csv", *pictures}
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "a &lt;b&gt; sweep" in page
    assert "Best: gamma=0.2, 80.0 ± 127.1 % for 4.00 MB." in page
    assert "To 60 %, gamma=0.10 sends the least, 1.00 MB, and gamma=0.2 the most, 4.00 MB (4.0 times as much)." in page
    rows = Cells(page).rows
    assert ["0.10", "1 of 2", "250", "25.0", "40.0", "60.0", "0.00400", "1.00", "1"] in [row[:9] for row in rows]
    with (tmp_path / "out" / "report.csv").open() as stream:
        states = {row["run"]: row["state"] for row in csv.DictReader(stream)}
    assert states["gamma=0.10_seed=1"] == "interrupted"


@pytest.mark.usefixtures("without_pictures")
def test_the_answer_says_where_seeds_are_missing(sweep, tmp_path):
    write_report([run for run in find_runs(sweep) if "0.10" in run.name], tmp_path, "t")
    assert "Best: all runs, 40.0 % for 4.00 MB (of 1 of its 2 seeds)." in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("without_pictures")
def test_clients_of_different_size_have_the_least_and_the_most_parameters(tmp_path):
    run = write_run(tmp_path / "seed=0", [0.5], ["seed=0"])
    run.summary["parameters"] |= {"shared_phone": 100, "shared_tablet": 180, "shared_server": 250}
    (tmp_path / "seed=0" / "summary.json").write_text(json.dumps(run.summary))
    write_report(find_runs(tmp_path), tmp_path, "t")
    assert "| 100 to 250 |" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("without_pictures")
def test_equal_seeds_have_an_interval_of_no_width(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"seed={seed}", [0.5], [f"seed={seed}"])
    write_report(find_runs(tmp_path), tmp_path, "t")
    assert "| 50.0 ± 0.0 |" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("without_pictures")
def test_a_report_that_is_interrupted_leaves_the_old_page(tmp_path, monkeypatch):
    write_run(tmp_path / "seed=0", [0.5], ["seed=0"])
    write_report(find_runs(tmp_path), tmp_path, "the old one")
    before = (tmp_path / "report.md").read_text()
    monkeypatch.setattr("fedpara.files.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_report(find_runs(tmp_path), tmp_path, "the new one")
    assert (tmp_path / "report.md").read_text() == before


def test_an_interval_wider_than_all_shares_does_not_squeeze_the_figure(sweep, tmp_path):
    write_run(tmp_path / "dense", [0.5], ["factorization.gamma=1"], parameters=1000)
    figure = draw(settings(find_runs(sweep)), None)["size"]
    assert figure.axes[0].get_ylim()[0] >= -2
    assert figure.axes[0].get_ylim()[1] <= 102


def test_numbers_have_three_digits_and_no_exponent():
    values = (12345.6, 999.5, 24, 0.05994, 0.00055, 0)
    assert [three_digits(value) for value in values] == ["12,346", "1,000", "24.0", "0.0599", "0.000550", "0"]


@pytest.mark.usefixtures("without_pictures")
def test_the_answer_names_those_that_the_best_is_not_told_apart_from(tmp_path):
    """All five algorithms of Table 3 at two cores; dense is told apart from fedpara and low rank by pairs of seeds."""
    write_report(find_runs(KEPT.parent / "table3_two_cores"), tmp_path, "t")
    page = (tmp_path / "report.html").read_text()
    assert "Its difference from feddyn; fedavg; fedadam is not settled. To 27 %, " in page
    write_report(find_runs(KEPT), tmp_path, "t")
    assert "Best: dense, 55.8 ± 2.0 % for 1.26 GB. To 45 %, " in (tmp_path / "report.html").read_text()


def write_seeds(folder, name, last, **options):
    """A run for each seed with its last accuracy."""
    for seed, accuracy in last.items():
        write_run(folder / f"{name}-{seed}", [0.1, accuracy], [f"factorization={name}", f"seed={seed}"], **options)


@pytest.mark.usefixtures("without_pictures")
def test_differences_are_paired_by_seed_with_an_interval_of_student(tmp_path):
    """Pairs differ by 4, 5 and 9 points: 6 ± 4.303 sqrt(7 / 3) = 6 ± 6.57; others by 10, 11, 12: 11 ± 2.48."""
    write_seeds(tmp_path, "dense", {0: 0.50, 1: 0.70, 2: 0.90, 7: 0.1})
    write_seeds(tmp_path, "fedpara", {2: 0.99, 1: 0.75, 0: 0.54})
    write_seeds(tmp_path, "low_rank", {0: 0.40, 1: 0.59, 2: 0.78})
    page = write_report(find_runs(tmp_path), tmp_path / "report", "t")[-3:]
    rows = [
        ["factorization=fedpara", "factorization=dense", "2", "+6.0", "-0.6 to +12.6", "3 paired", "not settled"],
        ["factorization=low_rank", "factorization=dense", "2", "-11.0", "-13.5 to -8.5", "3 paired", "lower"],
    ]
    shown = [row[:6] for row in Cells(page[0].read_text()).rows if row[1:2] == ["factorization=dense"]]
    assert shown == [row[:6] for row in rows]
    assert all(f"| {' | '.join(row)} |" in page[1].read_text() for row in rows)
    (one, other) = differences(settings(find_runs(tmp_path)), "factorization=low_rank")
    assert (one.variant.label, one.verdict, other.verdict) == ("factorization=dense", "higher", "higher")
    with pytest.raises(ValueError, match="baseline=vgg: must be one of factorization=dense, factorization=fedpara, "):
        differences(settings(find_runs(tmp_path)), "vgg")


def test_other_seeds_are_unpaired_and_one_pair_settles_nothing(tmp_path):
    """Welch: means 60 and 80, variances 2 of two runs each: 20 ± 4.303 sqrt(2) = 20 ± 6.09."""
    write_seeds(tmp_path, "dense", {0: 0.59, 1: 0.61})
    write_seeds(tmp_path, "fedpara", {2: 0.79, 3: 0.81})
    write_seeds(tmp_path, "low_rank", {0: 0.2})
    welch, single = differences(settings(find_runs(tmp_path)))
    assert (welch.paired, welch.num_runs, welch.verdict) == (False, (2, 2), "higher")
    assert (welch.low, welch.high) == (pytest.approx(13.915, abs=1e-3), pytest.approx(26.085, abs=1e-3))
    assert (single.mean, single.verdict) == (pytest.approx(-39), "not settled: fewer than 2 pairs")


@pytest.mark.parametrize(
    ("values", "verdict", "interval"),
    [
        ({0: 0.36, 1: 0.71, 2: 0.83}, "equal", (0.0, 0.0)),
        ({0: 0.46, 1: 0.81, 2: 0.93}, "not settled: no spread between seeds", (10.0, 10.0)),  # 0.1 with its rounding
        ({3: 0.5, 4: 0.5}, "not settled", None),
        ({0: 0.36}, "not settled: fewer than 2 pairs", None),
    ],
)
def test_pairs_without_spread_do_not_settle_a_difference(tmp_path, values, verdict, interval):
    """With the same difference in all seeds, Student's interval has width 0, whatever their number."""
    write_seeds(tmp_path, "dense", {0: 0.36, 1: 0.71, 2: 0.83})
    write_seeds(tmp_path, "fedpara", values)
    (found,) = differences(settings(find_runs(tmp_path)))
    assert (found.verdict, found.settled) == (verdict, False)
    assert interval is None or (found.low, found.high) == pytest.approx(interval)


def test_seeds_that_cannot_be_paired_and_have_no_spread_are_equal_or_settle_nothing(tmp_path):
    write_seeds(tmp_path, "dense", {0: 0.1, 1: 0.1, 2: 0.1})
    write_seeds(tmp_path, "fedpara", {3: 0.1, 4: 0.1})
    write_seeds(tmp_path, "low_rank", {5: 0.2, 6: 0.2})
    verdicts = [one.verdict for one in differences(settings(find_runs(tmp_path)))]
    assert verdicts == ["equal", "not settled: no spread between seeds"]


def test_a_run_that_diverged_is_the_reason_why_a_difference_is_not_settled(tmp_path):
    write_seeds(tmp_path, "dense", {0: 0.5, 1: 0.6})
    write_seeds(tmp_path, "fedpara", {0: 0.6, 1: float("nan")})
    (found,) = differences(settings(find_runs(tmp_path)))
    assert found.verdict == "not settled: a value is not finite"


def test_only_runs_on_the_same_partition_are_compared_and_in_a_round_that_all_have_tested(tmp_path):
    for alpha in (0.1, 0.5):
        config = {"partition": {"alpha": alpha}}
        write_run(tmp_path / f"a{alpha}", [0.5, 0.6], ["algorithm=a", f"partition.alpha={alpha}"], config=config)
        write_run(tmp_path / f"b{alpha}", [0.8], ["algorithm=b", f"partition.alpha={alpha}"], config=config)
    found = differences(settings(find_runs(tmp_path)), "a")
    assert [(one.variant.label, one.baseline.label, one.round) for one in found] == [
        (f"algorithm=b, alpha={alpha}", f"algorithm=a, alpha={alpha}", 1) for alpha in (0.1, 0.5)
    ]
    assert [one.mean for one in found] == [pytest.approx(30)] * 2


def test_runs_tested_on_held_out_examples_are_compared_with_their_like_alone(tmp_path):
    """A run from before the key existed held nothing out."""
    shares = {"a": None, "b": 0.0, "c": 0.2}
    for name, share in shares.items():
        config = {"partition": {"alpha": 0.5}} | ({} if share is None else {"data": {"validation": share}})
        write_run(tmp_path / name, [0.5], [f"algorithm={name}"], config=config)
    (found,) = differences(settings(find_runs(tmp_path)), "a")
    assert found.variant.values == {"algorithm": "b"}


@pytest.mark.usefixtures("without_pictures")
def test_personal_results_are_judged_by_the_clients_own_models_and_local_ones_send_nothing(tmp_path):
    write_report(find_runs(KEPT.parent / "fig5_two_cores" / "mnist_shards"), tmp_path, "t")
    page = (tmp_path / "report.html").read_text()
    assert re.search(r"Best: [^.]*9[67]\.\d ± ", page)  # local training, whose global model stays near 10 %
    assert " sends the least, 0.00 MB, and " in page


def test_kept_results_without_a_record_of_what_was_typed_go_by_their_folders():
    found = {setting.label: setting for setting in settings(find_runs(KEPT))}
    assert {name: len(setting.runs) for name, setting in found.items()} == {"dense": 3, "fedpara": 3, "low_rank": 3}
    assert found["fedpara"].num_shared == 88_240


PAPER = [
    ("fedpara_cifar10", [], 0.8, "CIFAR-10 IID, FedPara 0.1", {"Table 2", "Table 9", "Fig. 3g"}),
    ("fedpara_cifar10", ["factorization=dense"], 0.8, "CIFAR-10 IID, original", {"Table 9", "Fig. 3g"}),
    ("fedpara_cifar10", ["algorithm=feddyn"], 0.8, "CIFAR-10 IID, FedPara 0.1 + FedDyn", {"Table 3"}),
    ("fedpara_cifar100", [], 0.5, "CIFAR-100 IID, FedPara 0.4", {"Fig. 3g"}),
    (
        "paper/table2", ["setting=cifar100_noniid", "factorization=low_rank"], 0.5, "CIFAR-100 non-IID, low rank",
        {"Table 2"},
    ),
    ("paper/table2", ["setting=cinic10_iid"], 0.5, "CINIC-10 IID, FedPara 0.1", {"Table 2"}),
    ("paper/fig3", ["setting=cinic10_noniid"], 0.7, "CINIC-10 non-IID, FedPara 0.3", {"Fig. 3g"}),
    ("paper/table3", ["algorithm=fedadam"], 0.5, "CIFAR-10 IID, FedPara 0.1 + FedAdam", {"Table 3"}),
    (
        "paper/table4", ["factorization.nonlinearity=identity", "factorization.jacobian_correction=10"], 0.5,
        "CIFAR-10 IID, no tanh, lambda 10", {"Table 4"},
    ),
    ("paper/table9", ["factorization.gamma=0.7"], 0.5, "CIFAR-10 IID, FedPara 0.7", {"Table 9"}),
    ("paper/table10_pufferfish", ["factorization.num_dense=9"], 0.5, "CIFAR-10 IID, Pufferfish, 44 %", {"Table 10"}),
    ("paper/table11", ["setting=shakespeare_noniid"], 0.5, "Shakespeare non-IID, FedPara 0.0", {"Table 11"}),
    ("paper/table11", ["factorization=low_rank"], 0.5, "Shakespeare IID, low rank, LSTM", {"Table 11"}),
    ("paper/table12", ["link=fp16_up"], 0.5, "CIFAR-10 IID, FedPara 0.5, fp16 up", {"Table 12"}),
    ("paper/fig8", ["factorization.gamma=0.6"], 0.9, "ResNet18, CIFAR-10 IID, FedPara 0.6", {"Fig. 8"}),
    ("fedpara_cifar10", ["data.max_train=8000"], 0.5, "", set()),
]  # fmt: skip


def configured(*overrides):
    """The resolved configuration, as in a run's folder."""
    return OmegaConf.to_container(compose([*overrides, "logger=none", "paths.output_dir=x"]), resolve=True)


@pytest.mark.parametrize(("experiment", "overrides", "accuracy", "row", "sources"), thinned(PAPER, 4))
def test_a_run_of_the_papers_set_up_is_put_beside_its_numbers(tmp_path, experiment, overrides, accuracy, row, sources):
    """The configurations that are in configs/ are those that paper.yaml describes."""
    config = configured(f"experiment={experiment}", *overrides)
    run = write_run(tmp_path / "run", [accuracy], config=config, state="interrupted")
    found = compare(settings([run]))
    assert {comparison.source for comparison in found} == sources
    assert {comparison.row for comparison in found} == ({row} if sources else set())
    assert all(c.note == "so far, after 1 round" for c in found if c.source.startswith("Table"))


def test_a_finished_run_of_fewer_rounds_is_not_so_far_on_the_way_to_more(tmp_path):
    """Table 9 has 1000 rounds, Table 2 has 200."""
    run = write_run(tmp_path / "run", [0.8] * 200, config=configured("experiment=fedpara_cifar10"))
    assert "Table 2" in (sources := {one.source for one in compare(settings([run]))})
    assert "Table 9" not in sources


def test_what_dense_networks_do_not_take_is_no_other_set_up(tmp_path):
    run = write_run(tmp_path / "run", [0.9] * 200, config=configured("experiment=paper/fig8_original"))
    assert [(c.source, c.note) for c in compare(settings([run]))] == [("Fig. 8", "")]


DIFFERING = [
    (["model.optimizer.lr=0.001"], "model.optimizer.lr 0.001 (0.1 there)"),
    (["federation.lr_decay=0.9"], "federation.lr_decay 0.9 (0.992 there)"),
    (["data.local_fraction=0.1"], "data.local_fraction 0.1 (1.0 there)"),
    (["sharing=fedper"], "sharing.personal ['classifier.6.*'] ([] there)"),
    (
        ["data.transform=null"],
        "data.transform._target_ None (fedpara.data.CropAndFlip there), data.transform.padding None (4 there)",
    ),
    (["+model.optimizer.momentum=0.9"], "model.optimizer.momentum 0.9 (None there)"),
    (["model.optimizer._target_=torch.optim.Adam"],
     "model.optimizer._target_ torch.optim.Adam (torch.optim.SGD there)"),
    (["model.network.dropout=0"], "model.network.dropout 0 (0.5 there)"),
    (["faults.dropout=0.3"], "faults.dropout 0.3 (0.0 there)"),
    (["trainer.precision=bf16-mixed"], "trainer.precision bf16-mixed (32-true there)"),
    (["executor=processes", "executor.inner.matmul_precision=medium"],
     "executor.matmul_precision medium (None there)"),
    (["federation.num_clients=50"], None),
    (["data.max_train=5000"], None),
    (["executor=processes", "seed=3", "data.num_workers=2", "data.eval_batch_size=100", "trainer=cpu", "resume=x"], ""),
    (["federation.num_rounds=1000", "federation.eval_every=10", "paths.data_dir=x", "factors.gamma=0.3"], ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "named"), thinned(DIFFERING, 3), ids=[overrides[0] for overrides, _ in DIFFERING]
)
def test_a_run_of_another_set_up_says_what_differs_or_is_not_beside_the_paper(tmp_path, overrides, named):
    config = configured("experiment=paper/table9_original", *overrides)
    found = compare(settings([write_run(tmp_path / "run", [0.8] * 200, config=config)]))
    if named is None:
        assert not found
    else:
        assert {c.source for c in found} == {"Table 9", "Fig. 3g"}
        assert {c.note for c in found if c.source == "Fig. 3g"} == {f"another set-up: {named}" if named else ""}
        assert all(c.note.startswith(f"another set-up: {named}" if named else "") for c in found)


@pytest.mark.slow
def test_every_row_is_recognised_as_what_is_typed_for_it():
    """The two descriptions of a row in paper.yaml, what recognises it and what composes it, are of one set-up."""
    paper = yaml.safe_load(resources.files("fedpara.report").joinpath("paper.yaml").read_text())
    pairs = {(t["setup"], row) for kind in ("accuracies", "costs") for t in paper[kind] for row in t["values"]}
    assert {setup for setup, _ in pairs} == paper["setups"].keys()
    assert {row for _, row in pairs} <= paper["typed"].keys()
    for setup, row in [pair for pair in pairs if "non-IID" not in pair[0] and "FedPara 0." not in pair[1]]:
        run = Run(ROOT)
        vars(run)["config"] = report_paper.composed(setup, row)  # as if it had been read from config.yaml
        assert report_paper.is_row(run, paper["usual"] | paper["rows"][row]), (setup, row)
        assert report_paper.is_of(run, setup), (setup, row)


@pytest.mark.usefixtures("without_pictures")
def test_the_difference_to_the_paper(tmp_path):
    run = write_run(tmp_path / "run", [0.81] * 200, config=configured("experiment=fedpara_cifar10"))
    found = {(c.source, c.quantity): c for c in compare(settings([run]))}
    assert found["Table 2", "accuracy after 200 rounds, %"].difference == pytest.approx(81 - 82.88)
    assert found["Fig. 3g", "GiB to 80 %"].difference == pytest.approx(4 * CLIENT_BYTES / 2**30 - 20.3)
    page = write_report([run], tmp_path / "out", "t")[-3].read_text()
    assert [
        "Table 2",
        "CIFAR-10 IID, FedPara 0.1",
        "run",
        "accuracy after 200 rounds, %",
        "82.88",
        "81.00",
        "1",
        "-1.88",
    ] in [row[:8] for row in Cells(page).rows]


def test_the_paper_is_compared_with_one_run_of_each_seed(tmp_path):
    config = configured("experiment=fedpara_cifar10")
    runs = [
        write_run(tmp_path / f"{number}", [accuracy] * 200, [f"seed={seed}"], config=config | {"seed": seed})
        for number, (seed, accuracy) in enumerate([(0, 0.6), (0, 0.6), (1, 0.62)])
    ]
    (setting,) = settings(runs)
    ours = next(one.measured for one in compare([setting]) if one.source == "Table 2")
    assert ours == setting.last
    assert ours.num_seeds == setting.num_seeds == 2


def test_runs_for_which_nothing_was_typed_are_seeds_of_one_setting(tmp_path):
    typed = {"2025-01-01_10-00-00": ["logger=csv"], "2025-01-01_10-00-01": ["logger=csv", "seed=1"]}
    runs = [write_run(tmp_path / name, [0.6], overrides) for name, overrides in typed.items()]
    (setting,) = settings(runs)
    assert setting.label == "all runs"
    assert len(setting.counted) == 2


def test_an_accuracy_in_float32_reaches_its_target(tmp_path):
    """0.58 in float32 is below 0.58; the best whole percent is 58."""
    runs = [write_run(tmp_path / f"run-{seed}", [0.3, 0.57999998331069946], [f"seed={seed}"]) for seed in (0, 1)]
    (setting,) = settings(runs)
    assert setting.reaches(0.58)
    assert not setting.reaches(0.5801)
    assert common_target([setting]) == 0.58


def test_less_of_a_cost_is_better(tmp_path):
    for name, rounds in (("dear", 4), ("cheap", 2)):
        write_run(tmp_path / name, [0.5] * rounds, [f"factorization={name}"])
    write_report(find_runs(tmp_path), tmp_path / "report", "t", metric="comm/total_bytes")
    assert "Best: factorization=cheap" in (tmp_path / "report" / "report.md").read_text()


def test_the_bytes_are_those_of_the_round_of_the_accuracy_beside_them(tmp_path):
    for seed, rounds in ((0, 4), (1, 2)):  # one was extended
        write_run(tmp_path / f"dense-{seed}", [0.5, 0.6, 0.7, 0.8][:rounds])
    (setting,) = settings(find_runs(tmp_path))
    assert setting.last.mean == pytest.approx(60)
    assert setting.gigabytes.mean == pytest.approx(2 * 4 * CLIENT_BYTES / 1e9)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("metric", "best"),
    [("personal/mse_mean", "good"), ("personal/trained_mse_p90", "good"), ("test/mse_phone", "good"),
     ("privacy/epsilon", "good"), ("test/mserank", "bad")],
)  # fmt: skip
def test_less_of_all_that_is_made_of_the_headline_is_better_where_that_is_so(tmp_path, metric, best):
    for name, value in (("good", 0.1), ("bad", 0.8)):
        folder = write_run(tmp_path / name, [0.5] * 2, [f"factorization={name}"]).folder
        text = (folder / "metrics.csv").read_text().replace("test/acc", metric).replace("0.5,", f"{value},")
        (folder / "metrics.csv").write_text(text)
        summary = json.loads((folder / "summary.json").read_text())
        summary |= {"headline": {"name": "mse", "higher_is_better": False}}
        (folder / "summary.json").write_text(json.dumps(summary))
    write_report(find_runs(tmp_path), tmp_path / "report", "t", metric=metric)
    assert f"Best: factorization={best}" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize("name", ["cost", "size", "frontier", "report"])
def test_a_headline_with_the_name_of_another_figure_keeps_its_curves(tmp_path, name):
    for number, value in enumerate((0.1, 0.4, 0.8)):
        folder = write_run(tmp_path / f"run{number}", [0.9, value], [f"x={number}"], parameters=100 + number).folder
        (folder / "metrics.csv").write_text((folder / "metrics.csv").read_text().replace("test/acc", f"test/{name}"))
    found = charts(settings(find_runs(tmp_path), Metric(f"test/{name}", higher_is_better=False)), 0.9)
    assert {name: len(chart.panels) for name, chart in found.items()} == {
        "curves": 2, "frontier": 1, "size": 1, "cost": 4,
    }  # fmt: skip


@pytest.mark.usefixtures("without_pictures")
def test_a_folder_may_have_the_name_of_a_key(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(sweep)
    (sweep / "pool").mkdir()
    for name in ("gamma=0.2_seed=0", "gamma=0.2_seed=1"):
        (sweep / name).rename(sweep / "pool" / name)
    assert Path("out/report.html") in program.report(["pool", "output=out"])


def test_dollars_in_the_names_of_folders_are_no_formulas(tmp_path):
    for name in ("a $x_{-0", "b $y}$-0"):
        write_run(tmp_path / name, [0.5, 0.6])
    write_report(find_runs(tmp_path), tmp_path / "report", "t", target=0.6)


@pytest.mark.slow
def test_many_runs_and_folders_that_are_half_there(sweep, tmp_path):
    """500 run folders; one was killed while it wrote its row, one before its first."""
    for number in range(496):
        shutil.copytree(sweep / "gamma=0.2_seed=0", sweep / f"gamma=0.2_seed={number + 2}")
    (sweep / "gamma=0.2_seed=9" / "summary.json").unlink()
    (sweep / "gamma=0.2_seed=9" / "metrics.csv").write_text("round,test/acc,comm/total_bytes,time/round_s\n1,0.5,10")
    shutil.rmtree(sweep / "gamma=0.2_seed=8")
    (sweep / "gamma=0.2_seed=8" / ".hydra").mkdir(parents=True)
    runs = find_runs(sweep)
    assert len(runs) == 500
    assert {run.name for run in runs if run.state == "interrupted"} == {
        "gamma=0.10_seed=1", "gamma=0.2_seed=8", "gamma=0.2_seed=9",
    }  # fmt: skip
    write_report(runs, tmp_path / "out", "many")
    assert (tmp_path / "out" / "report.html").stat().st_size < 2e6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "folder: missing; python src/report.py <folder>"),
        (["nowhere"], "nowhere: holds no run folder (metrics.csv, summary.json)"),
        ([str(KEPT), "titel=x"], "titel: no such key; python src/report.py <folder>"),
        ([str(KEPT), "target=80"], "target=80: must be a number above 0, at most 1"),
        ([str(KEPT), str(KEPT)], f"{KEPT}: given twice"),
        ([str(KEPT / "dense-0"), str(KEPT)], f"{KEPT / 'dense-0'}: must not be within another folder, {KEPT}"),
        ([str(KEPT), str(ROOT / "docs")], f"{ROOT / 'docs'}: holds no run folder"),
        ([str(KEPT), "pool=yes"], "pool=yes: must be true or false"),
        (["pool"], "pool: holds no run folder (metrics.csv, summary.json)"),
        ([str(KEPT), "baseline=vgg"], "baseline=vgg: must be one of dense, fedpara, low_rank"),
        ([str(KEPT), "metric=personal/acc_mean"], "metric=personal/acc_mean: no run has measured it"),
    ],
)
def test_wrong_arguments_are_one_line(monkeypatch, capsys, arguments, line):
    monkeypatch.setattr("sys.argv", ["report.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1


def test_status_has_no_keys_and_takes_folders_with_an_equals_sign(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["status.py", "foldr=x"])
    with pytest.raises(SystemExit, match="2"):
        status_program.main()
    assert capsys.readouterr().err == "error: foldr: no such key; python src/status.py [<folder> ...]\n"
    monkeypatch.chdir(write_run(tmp_path / "seed=1", [0.5]).folder.parent)
    monkeypatch.setattr("sys.argv", ["status.py", "seed=1"])
    status_program.main()
    assert "50.00 %" in capsys.readouterr().out


def test_who_may_only_read_sees_a_running_process_too(tmp_path, monkeypatch):
    opened = Path.open

    def only_to_read(path, mode="r", **options):
        if mode != "r":
            raise PermissionError(path)
        return opened(path, mode, **options)

    with reserve(tmp_path):
        monkeypatch.setattr(Path, "open", only_to_read)
        assert is_reserved(tmp_path)
    assert not is_reserved(tmp_path)


def test_status_lists_runs_and_sees_which_still_have_a_process(sweep, monkeypatch, capsys):
    """At the pace of 2.5 s a round, three rounds of four are left."""
    monkeypatch.setattr("sys.argv", ["status.py", str(sweep)])
    with reserve(sweep / "gamma=0.10_seed=1"):
        status_program.main()
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line]
    by_name = {line[0]: line for line in cells}
    assert by_name["gamma=0.10_seed=1"][:5] == ["gamma=0.10_seed=1", "running", "1/4", "10.00 %", "1.00 MB"]
    assert by_name["gamma=0.10_seed=1"][6] == "0:00:08"
    assert by_name["gamma=0.2_seed=0"][1:4] == ["finished", "4/4", "70.00 %"]
    status_program.main()
    assert "running" not in capsys.readouterr().out  # the process is gone, whatever its summary says
    monkeypatch.setattr("sys.argv", ["status.py", "nowhere"])
    with pytest.raises(SystemExit, match="2"):
        status_program.main()


@pytest.mark.usefixtures("without_pictures")
def test_runs_without_a_record_of_what_was_typed_share_a_table_with_those_that_have_one(tmp_path):
    """Each value stands under its own head, whichever setting is the best."""
    write_run(tmp_path / "dense-0", [0.5])
    write_run(tmp_path / "gamma=0.1", [0.7], ["factorization.gamma=0.1", "model.optimizer.lr=1"])
    write_run(tmp_path / "gamma=0.2", [0.3], ["factorization.gamma=0.2", "model.optimizer.lr=2"])
    write_report(find_runs(tmp_path), tmp_path / "report", "t")
    rows = Cells((tmp_path / "report" / "report.html").read_text()).rows
    assert ["gamma", "lr", "setting", "seeds"] in [row[:4] for row in rows]
    for shown in (["0.1", "1", "-", "1"], ["-", "-", "dense", "1"], ["0.2", "2", "-", "1"]):
        assert shown in [row[:4] for row in rows]


class Strict(HTMLParser):
    """Elements that are closed in order, and the addresses that they load; void elements are not closed."""

    VOID = {"meta", "img", "source"}

    def __init__(self, page):
        super().__init__()
        self.open, self.loaded, self.ids, self.starts = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.starts.append((tag, dict(attrs)))
        self.loaded += [value for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def two_sweeps(folder):
    """The same three seeds twice: the second is 1, 2 and 3 points better for dense, and has another second setting."""
    write_seeds(folder / "a", "dense", {0: 0.5, 1: 0.6, 2: 0.7})
    write_seeds(folder / "a", "low_rank", {0: 0.3, 1: 0.4, 2: 0.5}, parameters=500)
    write_seeds(folder / "b", "dense", {0: 0.51, 1: 0.62, 2: 0.73})
    write_seeds(folder / "b", "fedpara", {0: 0.4, 1: 0.5, 2: 0.6}, parameters=300)
    return folder / "a", folder / "b"


def made(*arguments):
    """The page of a report of folders, and its files by name."""
    files = {path.name: path for path in program.report([*map(str, arguments)])}
    return files["report.html"].read_text(), files


def test_the_page_is_whole_html_that_loads_nothing_and_has_the_sorting_library(sweep):
    text, _ = made(sweep)
    page = Strict(text)
    assert text.startswith("<!doctype html>")
    assert page.open == []
    assert page.loaded
    assert all(address.startswith("data:") for address in page.loaded)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    vendor = resources.files("fedpara.report") / "vendor"
    assert all((vendor / name).read_text() in text for name in ("sortable.min.js", "sortable.a11y.min.js"))
    assert "public domain" in (vendor / "LICENSE").read_text()
    tables = [attrs for tag, attrs in page.starts if tag == "table"]
    assert tables
    assert all("sortable" in attrs["class"].split() for attrs in tables)
    assert {attrs["scope"] for tag, attrs in page.starts if tag == "th"} == {"col"}
    cells = [attrs for tag, attrs in page.starts if tag == "td"]
    assert {"data-label": "last, %", "data-sort": "80.0"} in cells  # 80.0 ± 127.1
    assert all("data-label" in attrs for attrs in cells)  # the heads of cards on a phone


@pytest.mark.slow
def test_figures_have_a_narrow_form_and_a_dark_one_and_print_in_light_colours(sweep):
    text, _ = made(sweep)
    (wide, narrow), *_ = re.findall(r'srcset="data:(\S+?)"><img alt="[^"]+" src="data:(\S+?)"', text)
    shapes = []
    for form in (wide, narrow):
        kind, _, content = form.partition(";base64,")
        assert kind == "image/svg+xml"
        svg = ElementTree.fromstring(base64.b64decode(content))
        width, height = (float(svg.get(side).removesuffix("pt")) for side in ("width", "height"))
        shapes.append(width > height)
        assert not [rect for rect in svg.iter() if rect.get("style", "").startswith("fill: #ffffff; stroke")]
    assert shapes == [True, False]
    (dark,) = re.findall(r"@media screen and \(prefers-color-scheme: dark\) \{(.*?)\n  \}", text, re.DOTALL)
    assert "img { filter: invert(1) hue-rotate(180deg) }" in dark
    assert set(re.findall(r"(--\w+): ", text[: text.index("@media")])) == set(re.findall(r"(--\w+): ", dark))


def drawn_points(figure):
    """(panel, x, y) of all lines of a figure, rounded as in its table."""
    return {
        (axis.get_xlabel(), f"{x:.6g}", f"{y:.6g}")
        for axis in figure.axes for line in axis.lines for x, y in zip(*line.get_data(), strict=True)
    }  # fmt: skip


def read_points(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_the_data_beside_a_figure_is_what_is_drawn(tmp_path):
    """And the link on the page gives the file beside it."""
    folder, _ = two_sweeps(tmp_path)
    text, files = made(folder)
    found = charts(settings(find_runs(folder)), common_target(settings(find_runs(folder))))
    points = read_points(files["accuracy.csv"])
    assert {(point["panel"], point["x"], point["mean"]) for point in points} == drawn_points(found["accuracy"].draw())
    means = {(p["setting"], p["x"]): p for p in points if p["source"] == "mean" and p["panel"] == "round"}
    last = means["factorization=low_rank", "2"]
    assert (last["mean"], last["n"]) == ("40", "3")
    assert float(last["high"]) - 40 == pytest.approx(4.3027 * 10 / 3**0.5, abs=1e-3)
    runs = {f"{name}-{seed}" for name in ("dense", "low_rank") for seed in range(3)}
    assert {point["source"] for point in points if point["n"] == "1"} == runs
    (axis,) = found["size"].draw().axes
    ends = {(f"{x:.6g}", f"{y:.6g}") for bars in axis.collections for line in bars.get_segments() for x, y in line}
    sizes = read_points(files["size.csv"])
    assert ends == {(point["x"], point[end]) for point in sizes for end in ("low", "high")}
    costs = read_points(files["cost.csv"])
    widths = {
        (axis.get_title(), f"{bar.get_width():.6g}") for axis in found["cost"].draw().axes for bar in axis.patches
    }
    assert widths == {(point["panel"], point["mean"]) for point in costs}
    for name in ("accuracy.csv", "size.csv", "cost.csv", "report.csv"):
        (link,) = re.findall(rf'<a download="{name}" href="data:text/csv;base64,([^"]+)"', text)
        assert base64.b64decode(link) == files[name].read_bytes()


@pytest.mark.slow
def test_the_frontier_joins_what_nothing_beats_in_accuracy_and_bytes(tmp_path):
    """The third sends as much as the second and is worse; the fourth sends most and is best."""
    curves = {"low_rank": [0.3], "fedpara": [0.2, 0.6], "pfedpara": [0.2, 0.5], "dense": [0.1, 0.2, 0.5, 0.7]}
    for name, accuracies in curves.items():
        write_run(tmp_path / name, accuracies, [f"factorization={name}"])
    found = settings(find_runs(tmp_path))
    joined = {f"factorization={name}" for name in ("low_rank", "fedpara", "dense")}
    assert pareto(found) == joined
    worst = [replace(one, metric=Metric("test/acc", higher_is_better=False)) for one in found]
    assert pareto(worst) == {"factorization=low_rank"}
    chart = charts(found)["frontier"]
    assert {row[1] for row in chart.table[1] if "Pareto" in row[2]} == joined
    (axis,) = chart.draw().axes
    assert [list(line.get_ydata()) for line in axis.lines if len(line.get_ydata()) > 1] == [[30, 60, 70]]
    _, files = made(tmp_path)
    heads, _, *rows = [line for line in files["report.md"].read_text().splitlines() if line.startswith("|")][:6]
    assert [row.split("|")[heads.split("|").index(" Pareto ")].strip() for row in rows] == ["yes", "yes", "-", "yes"]


@pytest.mark.slow
def test_what_is_too_large_for_a_page_is_beside_it(sweep, monkeypatch):
    monkeypatch.setattr("fedpara.report.page.LARGEST", 300)
    text, files = made(sweep)
    assert '<a download="accuracy.csv" href="accuracy.csv">' in text
    assert files["accuracy.csv"].stat().st_size > 300
    assert 'src="data:image/png;base64,iVBOR' in text


@pytest.mark.slow
def test_figures_are_in_the_order_of_the_table(tmp_path):
    folder, _ = two_sweeps(tmp_path)
    _, files = made(folder)
    found = charts(sorted(settings(find_runs(folder)), key=lambda one: -one.last.mean), 0.4)
    order = ["factorization=dense", "factorization=low_rank"]
    assert [text.get_text() for text in found["accuracy"].draw().legends[0].get_texts()] == order
    bars = found["cost"].draw().axes[0]
    assert [text.get_text() for text in bars.get_yticklabels()] == order
    assert bars.get_ylim()[0] > bars.get_ylim()[1]  # the first is on top
    rows = files["report.md"].read_text().split("## Settings")[1]
    assert rows.index("| dense |") < rows.index("| low_rank |")
    assert list(dict.fromkeys(point["setting"] for point in read_points(files["cost.csv"]))) == order


@pytest.mark.usefixtures("without_pictures")
def test_two_sweeps_are_marked_and_their_equal_settings_compared_by_seed(tmp_path):
    """Dense differs by 1, 2 and 3 points: 2 ± 4.303 / sqrt(3) = 2 ± 2.48."""
    folders = two_sweeps(tmp_path)
    text, files = made(*folders)
    assert files["report.html"].parent == tmp_path / "a" / "report_with_b"
    rows = Cells(text).rows
    between = ["b: factorization=dense", "a: factorization=dense", "2", "+2.0", "-0.5 to +4.5", "3 paired"]
    assert between in [row[:6] for row in rows]
    within = ["b: factorization=fedpara", "b: factorization=dense", "2", "-12.0", "-14.5 to -9.5", "3 paired"]
    assert within in [row[:6] for row in rows]  # the baseline of its own sweep
    assert [row[:3] for row in rows if row[0] in ("a", "b") and row[2] == "3"] == [
        ["b", "dense", "3"], ["a", "dense", "3"], ["b", "fedpara", "3"], ["a", "low_rank", "3"],
    ]  # fmt: skip
    assert f"| {' | '.join(between)} |" in files["report.md"].read_text()
    found = settings(find_runs(*folders), sweeps={run.folder: run.folder.parent.name for run in find_runs(*folders)})
    looks = charts(found)["accuracy"].looks
    assert looks["a: factorization=dense"]["color"] == looks["b: factorization=dense"]["color"]
    assert looks["a: factorization=dense"]["linestyle"] != looks["b: factorization=dense"]["linestyle"]


@pytest.mark.usefixtures("without_pictures")
def test_a_key_that_a_whole_sweep_has_otherwise_is_named_and_does_not_part_equal_settings(tmp_path):
    for name, rate in (("slow", 0.01), ("fast", 0.1)):
        for seed in (0, 1):
            typed = [f"seed={seed}", f"model.optimizer.lr={rate}"]
            config = {"model": {"optimizer": {"lr": rate}}, "partition": {"alpha": 0.5}, "seed": seed}
            write_run(tmp_path / name / f"run-{seed}", [0.5 + seed / 10 + rate * (1 + seed)], typed, config=config)
    rows = Cells(made(tmp_path / "slow", tmp_path / "fast")[0]).rows
    assert ["model.optimizer.lr", "0.01", "0.1"] in rows
    assert not [row for row in rows if row and row[0] in ("partition.alpha", "seed")]
    assert ["fast: all runs", "slow: all runs", "1", "+13.5"] in [row[:4] for row in rows]
    assert "## Differences" not in made(tmp_path / "slow", tmp_path / "fast")[1]["report.md"].read_text()


@pytest.mark.usefixtures("without_pictures")
def test_sweeps_on_other_partitions_are_compared_without_pairs(tmp_path):
    for name, alpha in (("a", 0.1), ("b", 0.5)):
        for seed in (0, 1):
            config = {"partition": {"alpha": alpha}, "seed": seed}
            write_run(tmp_path / name / f"run-{seed}", [0.5 + seed / 10], [f"seed={seed}"], config=config)
    rows = Cells(made(tmp_path / "a", tmp_path / "b")[0]).rows
    assert "2 and 2, unpaired" in next(row for row in rows if row and row[0] == "b: all runs")


@pytest.mark.usefixtures("without_pictures")
def test_folders_are_pooled_if_they_are_runs_of_one_sweep_or_if_it_is_asked_for(tmp_path):
    one, other = two_sweeps(tmp_path)
    runs, _ = made(one / "dense-0", one / "dense-1", f"output={tmp_path}/o")
    pooled, files = made(one, other, "pool=true")
    for page in (runs, pooled):
        assert "<h2>Sweeps</h2>" not in page
        assert ">sweep</th>" not in page
    assert files["report.html"].parent == one / "report"


@pytest.mark.usefixtures("without_pictures")
def test_the_papers_numbers_are_stars_where_it_prints_them(tmp_path):
    """Table 2 after 200 rounds, Fig. 3g in GiB to 80 %; not those of Table 9 after 1000 rounds, which were not run."""
    runs = {"fedpara": [], "dense": ["factorization=dense"]}
    for name, overrides in runs.items():
        config = configured("experiment=fedpara_cifar10", *overrides)
        write_run(tmp_path / name, [0.5, 0.81, *[0.82] * 198], [f"factorization={name}"], config=config)
    text, files = made(tmp_path, "target=0.8")
    points = [point for point in read_points(files["accuracy.csv"]) if point["n"] == "0"]
    stars = {(p["setting"].partition("=")[2], p["source"], p["panel"][:5], p["x"], p["mean"]) for p in points}
    assert stars == {
        ("fedpara", "paper, Table 2", "round", "200", "82.88"), ("dense", "paper, Table 9", "round", "200", "83.68"),
        ("fedpara", "paper, Fig. 3g", "sent,", f"{20.3 * 2**30 / 1e6:.6g}", "80"),
        ("dense", "paper, Fig. 3g", "sent,", f"{205.3 * 2**30 / 1e6:.6g}", "80"),
    }  # fmt: skip
    bars = [point["mean"] for point in read_points(files["cost.csv"]) if point["n"] == "0"]
    assert sorted(bars) == sorted(f"{gib * 2**30 / 1e6:.6g}" for gib in (20.3, 205.3))
    assert "Stars are numbers that the paper prints." in text


def test_long_names_of_sweeps_and_long_lists_of_values(tmp_path):
    runs = {}
    for sweep, last in (("a", 8), ("b", 9)):
        for value in (*range(1, 8), last):
            folder = tmp_path / sweep / str(value)
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(f"factors: {{gamma: {value}}}")
            runs[folder] = sweep
    heads, rows = differing_keys([Run(folder) for folder in runs], runs)
    assert heads == ["key", "a", "b"]
    assert [row[0] for row in rows] == ["factors.gamma"]


def test_runs_on_different_classes_are_not_on_the_same_partition(tmp_path):
    found = []
    for classes in ("null", "[0, 5]", "[5, 10]"):
        folder = tmp_path / classes
        folder.mkdir()
        (folder / "config.yaml").write_text(f"data: {{class_range: {classes}}}")
        found.append(_partition(Run(folder)))
    assert len(set(found)) == 3
    assert not found[0]
