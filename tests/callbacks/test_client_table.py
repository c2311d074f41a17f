"""clients.csv: a row per client of a round, whole rounds only, bounded, and without doubled rows after a resume."""

import csv
import tracemalloc
from types import SimpleNamespace

import pytest

from fedpara.callbacks import Checkpoint, ClientTable, RunFolder, restore
from fedpara.execution import FaultInjection
from fedpara.federation import FederationCallback, simulated
from fedpara.files import UnusableFile
from fedpara.record import CLIENT_COLUMNS, FATES, ClientRecord
from fedpara.runs import read_clients, read_rows, sample_of_clients
from helpers.federations import Watch, make_federation


def table(folder):
    with (folder / "clients.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def without_seconds(folder):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table(folder)]


def test_a_row_has_the_figures_of_its_client_and_the_rounds_are_their_sums(tmp_path):
    watch = Watch()
    make_federation(callbacks=[RunFolder(tmp_path, {}), ClientTable(tmp_path), watch]).fit()
    rows = list(read_clients(tmp_path / "clients.csv"))
    assert [tuple(row) for row in rows] == [CLIENT_COLUMNS] * 6
    for row, report in zip(rows, watch.reports, strict=True):
        assert (row["client"], row["examples"], row["steps"]) == (report.client, report.num_examples, report.num_steps)
        assert (row["train_loss"], row["seconds"]) == (report.train_loss, report.seconds)
        assert row["outcome"] == "succeeded"
    for whole in read_rows(tmp_path / "metrics.csv"):
        own = [row for row in rows if row["round"] == whole["round"]]
        for way in ("up", "down"):
            assert sum(row[f"{way}_bytes"] for row in own) == whole[f"comm/{way}_bytes"] > 0


@pytest.mark.parametrize("retries", [0, 2])
def test_clients_that_fail_have_one_row_with_their_bytes(tmp_path, retries):
    """Whose last attempt counts; a diverged upload was sent, so its bytes stay, also if the retry succeeds."""
    make_federation(
        clients=lambda executor: simulated(FaultInjection(executor, dropout=0.2, nan=0.3)),
        num_rounds=8,
        clients_per_round=5,
        retries=retries,
        callbacks=[RunFolder(tmp_path, {}), ClientTable(tmp_path)],
    ).fit()
    rows = list(read_clients(tmp_path / "clients.csv"))
    assert len(rows) == len({(row["round"], row["client"]) for row in rows}) == 40
    assert {row["outcome"] for row in rows} >= {"succeeded", "diverged", "dropped"} if not retries else {"succeeded"}
    for whole in read_rows(tmp_path / "metrics.csv"):
        own = [row for row in rows if row["round"] == whole["round"]]
        assert sum(row["up_bytes"] for row in own) == whole["comm/up_bytes"]
        assert sum(row["down_bytes"] for row in own) == whole["comm/down_bytes"]
        for fate in FATES:
            assert sum(row["outcome"] == fate for row in own) == whole[f"clients/{fate}"]
    failed = [row for row in rows if row["outcome"] != "succeeded"]
    assert all(row[name] is None for row in failed for name in ("examples", "steps", "train_loss", "seconds"))
    if retries:
        assert max(row["up_bytes"] for row in rows) > min(row["up_bytes"] for row in rows if row["up_bytes"])
    once = min(row["down_bytes"] for row in rows)
    attempts = {row["down_bytes"] / once for row in rows}
    assert attempts == ({1, 2, 3} if retries else {1})  # the broadcast is sent again in each


class Stop(FederationCallback):
    """Interrupts a run in the middle of its round."""

    def on_client_end(self, federation, report):
        if federation.round == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_run_continues_without_doubled_rows(tmp_path, every):
    """Its checkpoint may be older than its last round; what it lost is trained and written again."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    make_federation(num_rounds=5, callbacks=[ClientTable(whole), Checkpoint(whole)]).fit()
    own = lambda: [ClientTable(cut), Checkpoint(cut, every=every), Stop()]  # noqa: E731
    federation = make_federation(num_rounds=5, callbacks=own())
    with pytest.raises(KeyboardInterrupt):
        federation.fit()
    assert [int(row["round"]) for row in table(cut)] == [1, 1, 2, 2, 3, 3]
    with (cut / "clients.csv").open("a") as stream:
        stream.write("4,1,succeeded,1,1,1.0,1.0,1,1\r\n4,2,succ")  # of a process that was killed
    federation = make_federation(num_rounds=5, callbacks=own()[:2])
    restore(federation, cut)
    federation.fit()
    assert without_seconds(cut) == without_seconds(whole)


@pytest.mark.parametrize(("every", "max_rows", "rounds"), [(1, 6, [1, 2, 3]), (1, 5, [1, 2]), (2, 4, [2, 4])])
def test_rows_are_bounded_by_whole_rounds(tmp_path, caplog, every, max_rows, rounds):
    make_federation(num_rounds=6, callbacks=[ClientTable(tmp_path, every=every, max_rows=max_rows)]).fit()
    assert sorted({int(row["round"]) for row in table(tmp_path)}) == rounds
    assert len(table(tmp_path)) == 2 * len(rounds)
    (line,) = [record.message for record in caplog.records if "clients.csv" in record.message]
    assert line == f"clients.csv: has no round after {rounds[-1]}, max_rows={max_rows}"


def test_there_is_no_warning_where_no_later_round_is_due(tmp_path, caplog):
    """Rounds 3, 6 and 9 are due, and their 30 rows fit."""
    callback = ClientTable(tmp_path, every=3, max_rows=30)
    for num_rounds, warnings in ((11, 0), (12, 1)):
        caplog.clear()
        federation = SimpleNamespace(clients_per_round=10, num_rounds=num_rounds, round=0, tiers=None)
        callback.on_fit_start(federation)
        callback.on_fit_end(federation, "finished")
        assert len(caplog.records) == warnings


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clients(tmp_path):
    """A round of 10^5 clients: 6 MB of rows, of which the process holds a buffer."""
    federation = SimpleNamespace(clients_per_round=100_000, num_rounds=1, round=0, tiers=None)
    callback = ClientTable(tmp_path)
    callback.on_fit_start(federation)
    tracemalloc.start()
    for client in range(100_000):
        callback.on_client_record(
            federation, ClientRecord(1, client, "succeeded", 13_036, 13_036, 60, 6, 1.0986 + client, 0.0123 + client)
        )
    callback.on_round_end(federation, SimpleNamespace(round=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    callback.on_fit_end(federation, "finished")
    assert (tmp_path / "clients.csv").stat().st_size > 5e6
    assert peak < 1e5


@pytest.mark.parametrize(("most", "clients"), [(30, 10), (15, 5), (14, 4), (2, 1)])
def test_a_sample_has_all_rounds_of_some_clients(tmp_path, most, clients):
    callback = ClientTable(tmp_path)
    federation = SimpleNamespace(clients_per_round=10, num_rounds=3, round=0, tiers=None)
    callback.on_fit_start(federation)
    for number in (1, 2, 3):
        for client in range(10):
            callback.on_client_record(federation, ClientRecord(number, client, "dropped", 0, 1))
    callback.on_round_end(federation, SimpleNamespace(round=3))
    callback.on_fit_end(federation, "finished")
    rows = sample_of_clients(tmp_path / "clients.csv", most)
    assert 0 < len(rows) <= most
    assert len({row["client"] for row in rows}) == clients


@pytest.mark.parametrize("text", ["round,client\r\n1,2\r\n", ",".join(CLIENT_COLUMNS) + "\r\nx,2\r\n", "a\xff\n"])
def test_a_damaged_table_is_named(tmp_path, text):
    (tmp_path / "clients.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnusableFile, match=r"clients\.csv: not a table of clients, or damaged"):
        make_federation(callbacks=[ClientTable(tmp_path)]).fit()
