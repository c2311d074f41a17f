"""The round: averages, bytes, decay, determinism, resume, failure."""

import csv
import json
import logging
from functools import partial

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback

from fedpara.algorithms import FedAvg
from fedpara.algorithms.feddyn import FedDyn
from fedpara.algorithms.fedopt import FedAdam
from fedpara.algorithms.scaffold import Scaffold
from fedpara.callbacks import Checkpoint, LoggerForwarding, PartitionPicture, ProgressDisplay, RunFolder, restore
from fedpara.callbacks.partition_picture import draw_partition
from fedpara.data import Dirichlet, Shards
from fedpara.execution import SerialExecutor, VectorizedExecutor
from fedpara.federation import Federation, FederationCallback, Kept, simulated
from fedpara.nn import Dense, FedPara
from fedpara.runs import CHECKPOINT
from fedpara.sampling import cohort, derive_seed
from fedpara.sharing import Rotating, Split
from fedpara.state import join, weighted_mean
from helpers.cases import thinned
from helpers.federations import Watch, make_federation, same, watched
from helpers.runs import rows_without_times


def test_the_longest_clients_go_first_and_a_round_says_where_its_time_went():
    watch = Watch()
    made = make_federation(
        partition=Dirichlet(alpha=0.3, min_examples=1), clients_per_round=4, num_rounds=2, callbacks=[watch]
    )
    made.fit()
    for record, results in zip(watch.records, (watch.reports[:4], watch.reports[4:]), strict=True):
        sizes = [result.num_examples for result in results]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) > 1
        row = record.as_row()
        assert row["time/busy_s"] == pytest.approx(sum(result.seconds for result in results))
        assert row["time/busy_s"] < row["time/wait_s"] < row["time/train_s"] < row["time/round_s"]
        assert row["time/idle_s"] == pytest.approx(row["time/train_s"] - row["time/busy_s"])
    made.executor.workers = 3
    idle = made.run_round()
    assert idle.idle_seconds == pytest.approx(3 * idle.train_seconds - idle.busy_seconds)


def test_it_learns():
    watch = Watch()
    make_federation(num_rounds=20, eval_every=20, callbacks=[watch], lr=0.3).fit()
    assert watch.records[-1].metrics["test/acc"] > 0.8
    assert watch.records[-1].train_loss < watch.records[0].train_loss
    assert watch.outcome == "finished"


def test_a_round_is_the_mean_of_the_cohorts_models_by_examples():
    federation, results = watched()
    federation.run_round()
    assert [result.client for result in results] == cohort(0, 0, 5, 2)
    expected = weighted_mean([(result.state, result.num_examples) for result in results])
    assert same(federation.server["model"], expected)


def test_factors_are_averaged_not_the_weights_they_compose():
    """The mean of the products is not the product of the means (FedPara, Algorithm 1)."""
    federation, results = watched()
    network = federation.executor.module.network
    federation.run_round()

    def weight(state):
        network.load_state_dict(state)
        return network.layers[1].weight.detach()

    mean_of_weights = sum(weight(result.state) for result in results) / 2
    assert not torch.allclose(weight(federation.server["model"]), mean_of_weights, atol=1e-6)


def test_bytes_are_two_ways_times_clients_times_size_times_four():
    watch = Watch()
    federation = make_federation(callbacks=[watch])
    federation.fit()
    one_way = 2 * federation.num_shared * 4
    assert [(r.up_bytes, r.down_bytes, r.total_bytes) for r in watch.records] == [
        (one_way, one_way, 2 * one_way * number) for number in (1, 2, 3)
    ]


def test_half_precision_uploads_cost_half():
    watch = Watch()
    make_federation(callbacks=[watch], codec="float16").fit()
    assert watch.records[0].up_bytes * 2 == watch.records[0].down_bytes


@pytest.mark.parametrize(("schedule", "expected"), [(None, [1.0, 0.5, 0.25]), ("cosine", [1.0, 0.375, 0.0625])])
def test_learning_rate_decays_by_the_round(schedule, expected):
    """(1 + cos(pi t / 3)) / 2 is 1, 3/4, 1/4."""
    factors = []
    federation = make_federation(lr_decay=0.5, lr_schedule=schedule)
    run = federation.executor.run

    def spy(tasks):
        tasks = list(tasks)
        factors.append(tasks[0].learning_rate_factor)
        return run(tasks)

    federation.executor.run = spy
    federation.fit()
    assert factors == pytest.approx(expected, rel=1e-12)


def test_evaluation_every_so_many_rounds_and_after_the_last():
    watch = Watch()
    make_federation(num_rounds=5, eval_every=2, callbacks=[watch]).fit()
    assert [bool(record.metrics) for record in watch.records] == [False, True, False, True, True]


@pytest.mark.parametrize("recipe", [None, Dense()])
def test_same_seed_same_bits_and_other_seed_other_bits(recipe):
    runs = [make_federation(seed=seed, recipe=recipe, dropout=0.2) for seed in (0, 0, 1)]
    for federation in runs:
        federation.fit()
    assert same(runs[0].server["model"], runs[1].server["model"])
    assert not same(runs[0].server["model"], runs[2].server["model"])


@pytest.mark.parametrize("personal", thinned([["*2"], None]))
@pytest.mark.parametrize("algorithm", [FedAvg, Scaffold, FedDyn, FedAdam])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, personal, algorithm):
    make = partial(make_federation, num_rounds=4, eval_every=2, personal=personal)
    whole = make(algorithm=algorithm(), callbacks=[RunFolder(tmp_path / "a", {})])
    (tmp_path / "a").mkdir()
    whole.fit()
    folder = tmp_path / "b"
    folder.mkdir()

    class Crash(FederationCallback):
        def on_round_end(self, federation, record):
            if record.round == 3:
                raise RuntimeError("power cut")

    parts = [RunFolder(folder, {}), Crash(), Checkpoint(folder)]  # the third row is written, its checkpoint is not
    with pytest.raises(RuntimeError, match="power cut"):
        make(algorithm=algorithm(), callbacks=parts).fit()
    assert json.loads((folder / "summary.json").read_text())["state"] == "failed"
    resumed = make(algorithm=algorithm(), callbacks=[RunFolder(folder, {}), Checkpoint(folder)])
    restore(resumed, folder)
    assert resumed.round == 2
    resumed.fit()
    assert same(join(whole.server), join(resumed.server))
    for kept, restored in ((whole.personal, resumed.personal), (whole.memories, resumed.memories)):
        assert kept.keys() == restored.keys()
        assert all(same(kept[client], restored[client]) for client in kept)

    assert rows_without_times(tmp_path / "a") == rows_without_times(folder)
    assert [row["round"] for row in rows_without_times(folder)] == ["1", "2", "3", "4"]


def test_personal_parts_stay_with_their_client_and_never_travel():
    federation, results = watched(personal=["*2"], num_rounds=6, eval_every=6)
    sent = []
    encode = federation.link.up_codec.encode
    federation.link.up_codec.encode = lambda state, seed: (sent.append(set(state)), encode(state, seed))[1]
    federation.fit()
    assert all(not any(name.endswith("2") for name in names) for names in sent)
    assert set(federation.personal) == {result.client for result in results}
    last = {result.client: result for result in results}
    for client, kept in federation.personal.items():
        assert same(kept, federation.split.personal_part(last[client].state))


@pytest.mark.parametrize("executor", [SerialExecutor, VectorizedExecutor])
def test_what_is_personal_can_have_its_own_learning_rate(executor):
    """With a rate so small that a step is lost in rounding, it stays where it starts, and the rest is trained."""
    federation = make_federation(personal=["*2"], executor=executor)
    federation.executor.module.personal_rates = dict.fromkeys(federation.split.personal, 1e-12)
    federation.run_round()
    initial = federation.executor.initial_state()
    assert federation.personal
    assert all(same(kept, federation.split.personal_part(initial)) for kept in federation.personal.values())
    shared = federation.split.shared_part(initial)
    assert not any(torch.equal(shared[name], value) for name, value in federation.server["model"].items())


def test_personal_models_are_tested_on_their_own_distribution():
    """Two classes a client: the test is of those two, and mean and tenth percentile are of all clients."""
    watch = Watch()
    federation, results = watched(
        personal=["*2"], partition=Shards(2), num_rounds=12, eval_every=12, clients_per_round=5, lr=0.3,
        callbacks=[watch],
    )  # fmt: skip
    federation.fit()
    record = watch.records[-1]
    assert len(record.personal_scores) == 5
    row = record.as_row()
    assert row["personal/acc_mean"] == pytest.approx(sum(record.personal_scores) / 5)
    assert min(record.personal_scores) <= row["personal/acc_p10"] <= row["personal/acc_mean"]
    assert record.as_row()["personal/acc_mean"] > 0.7
    trained = [federation.executor.evaluate(result.state, result.client)["acc"] for result in results[-5:]]
    assert list(record.trained_scores) == trained
    assert row["personal/trained_acc_mean"] == pytest.approx(sum(trained) / 5)
    data = federation.executor.datamodule
    for client in range(5):
        own = set(data.examples[0].labels[data.parts[client]].tolist())
        tested = torch.cat([labels for _, labels in data.test_dataloader(client)])
        assert set(tested.tolist()) == own


def test_whether_personal_models_are_tested_can_be_said():
    assert make_federation(evaluate_personal=True).run_round().personal_scores
    assert not make_federation(evaluate_personal=False, personal=["*2"]).run_round().personal_scores
    assert not make_federation().run_round().personal_scores


def test_what_is_tested_as_a_clients_own_is_what_the_client_would_have_received():
    """The link's rounding included, as clients behind a network measure it."""
    federation = make_federation(personal=["*2"], num_rounds=1, down="bfloat16")
    federation.run_round()
    tested = []
    federation.executor.evaluate = lambda state, client: tested.append(state) or {"acc": 0.0}
    federation.evaluate_personal(1)
    for client, state in enumerate(tested):
        assert same(state, federation.model(client))
        for name, tensor in federation.server["model"].items():
            assert torch.equal(state[name], tensor.bfloat16().float())


def test_local_only_sends_nothing_and_each_client_goes_on_where_it_stopped():
    watch = Watch()
    federation = make_federation(personal=["*"], num_rounds=8, eval_every=8, callbacks=[watch])
    federation.fit()
    assert federation.total_bytes == 0
    first, again = [r for r in watch.reports if r.client == watch.reports[0].client][:2]
    assert again.train_loss < first.train_loss


@pytest.mark.parametrize("damage", ["truncate", "other model", "absent", "garbage"])
def test_checkpoints_that_cannot_be_used_give_one_line(tmp_path, damage):
    federation = make_federation(num_rounds=1, callbacks=[Checkpoint(tmp_path)])
    federation.fit()
    path = tmp_path / CHECKPOINT
    other = make_federation(recipe=Dense()) if damage == "other model" else make_federation()
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-10])
    if damage == "garbage":
        path.write_bytes(b"not a checkpoint")
    if damage == "absent":
        path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="checkpoint"):
        restore(other, tmp_path)


def test_a_diverged_client_never_reaches_the_server():
    federation = make_federation(lr=1e30)
    before = {name: value.clone() for name, value in federation.server["model"].items()}
    with pytest.raises(FloatingPointError, match=r"client \d returned NaN or infinite parameters in round 1"):
        federation.fit()
    assert same(federation.server["model"], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients_per_round": 6}, r"clients_per_round=6: must be 1 to num_clients \(5\)"),
        ({"num_rounds": 0}, "num_rounds"),
        ({"eval_every": 0}, "eval_every"),
        ({"lr_decay": 1.5}, "lr_decay"),
        ({"min_clients": 3}, r"min_clients=3: must be 1 to clients_per_round \(2\)"),
        ({"retries": -1}, "retries"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_federation(**options)


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_summary_says_how_it_ended(tmp_path, error, state):
    class Stop(FederationCallback):
        def on_round_end(self, federation, record):
            if record.round == 2:
                raise error

    with pytest.raises(error):
        make_federation(callbacks=[RunFolder(tmp_path, {"dense": 1}), Stop()]).fit()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["state"] == state
    assert summary["rounds"] == 2
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3


class StopAfter(FederationCallback):
    def __init__(self, number):
        self.number = number

    def on_round_end(self, federation, record):
        if record.round == self.number:
            federation.stop("the patience is at its end")


def test_a_callback_may_stop_a_run_which_is_finished_says_why_and_goes_on_when_resumed(tmp_path, caplog):
    make = partial(make_federation, num_rounds=4, personal=["*2"], algorithm=Scaffold())
    folder, watch = tmp_path / "stopped", Watch()
    folder.mkdir()
    parts = [RunFolder(folder, {}), StopAfter(2), Checkpoint(folder, every=3), watch]
    with caplog.at_level(logging.INFO):
        make(callbacks=parts).fit()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["state"], summary["rounds"], summary["stopped"]) == ("finished", 2, "the patience is at its end")
    assert watch.outcome == "finished"
    assert "stopped after round 2: the patience is at its end" in caplog.messages
    resumed = make(callbacks=[RunFolder(folder, {}), Checkpoint(folder)])
    restore(resumed, folder)
    assert resumed.round == 2  # though a checkpoint was not due before the third
    resumed.fit()
    whole = make()
    whole.fit()
    assert same(join(resumed.server), join(whole.server))
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["state"], summary["rounds"]) == ("finished", 4)
    assert "stopped" not in summary


def test_a_run_may_be_stopped_before_its_first_round_and_within_one():
    class Stop(FederationCallback):
        def __init__(self, hook):
            setattr(self, hook, lambda federation, *_: federation.stop("enough"))

    for hook, number in (("on_fit_start", 0), ("on_client_end", 1)):
        federation = make_federation(callbacks=[Stop(hook)])
        federation.fit()
        assert (federation.round, federation.stopped) == (number, "enough")


def test_a_checkpoint_refuses_clients_whose_states_it_cannot_name(tmp_path):
    federation = make_federation(personal=["*2"], callbacks=[Checkpoint(tmp_path)], clients=simulated)
    with pytest.raises(ValueError, match=r"clients keep their states in memory: take Checkpoint.clients"):
        federation.fit()


def test_every_callback_learns_of_the_end_even_where_one_fails():
    class Broken(FederationCallback):
        def on_fit_end(self, federation, outcome):
            raise OSError("disk full")

    watches = Watch(), Watch()
    with pytest.raises(OSError, match="disk full"):
        make_federation(callbacks=[watches[0], Broken(), watches[1]]).fit()
    assert [watch.outcome for watch in watches] == ["finished", "finished"]


def test_an_upload_that_overflows_half_precision_never_reaches_the_server():
    federation = make_federation(codec="float16")
    federation.server["model"]["layers.1.bias"].fill_(1e6)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        federation.run_round()


def test_a_server_step_that_overflows_is_not_kept():
    federation = make_federation(algorithm=FedAdam(server_lr=1e38, beta1=0, tau=1e-30))
    before = {name: value.clone() for name, value in join(federation.server).items()}
    with pytest.raises(
        FloatingPointError, match=r"the server's step gave NaN .* round 1.* smaller algorithm.server_lr"
    ):
        federation.fit()
    assert same(join(federation.server), before)


def test_ctrl_c_while_testing_is_an_interruption():
    watch = Watch()
    federation = make_federation(callbacks=[watch])

    def press(*_):
        raise KeyboardInterrupt

    federation.executor.module.test_step = press
    with pytest.raises(KeyboardInterrupt):
        federation.fit()
    assert watch.outcome == "interrupted"


def test_summary_of_a_finished_run(tmp_path):
    federation = make_federation(num_rounds=5, eval_every=2, callbacks=[RunFolder(tmp_path, {"dense": 9, "shared": 3})])
    federation.fit()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["state"] == "finished"
    assert summary["parameters"] == {"dense": 9, "shared": 3}
    assert summary["bytes_per_round"] == {"up": 2 * federation.num_shared * 4, "down": 2 * federation.num_shared * 4}
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    best = max(float(row["test/acc"]) for row in rows if row["test/acc"])
    assert summary["metrics"]["best"]["test/acc"] == best
    assert summary["metrics"]["last"]["round"] == 5
    assert summary["metrics"]["last"]["comm/total_bytes"] == int(rows[-1]["comm/total_bytes"])
    assert [row["test/acc"] != "" for row in rows] == [False, True, False, True, True]


def test_plain_progress_lines_say_round_accuracy_bytes_and_time_left(caplog):
    with caplog.at_level(logging.INFO):
        make_federation(callbacks=[ProgressDisplay()]).fit()
    lines = [record.message for record in caplog.records if record.message.startswith("round ")]
    assert len(lines) == 3
    assert lines[0].startswith("round 1/3 | loss ")
    for part in ("acc ", "sent ", " s | left 0:00:0"):
        assert part in lines[0]


def test_live_progress_in_a_terminal(capsys):
    from rich.console import Console

    console = Console(force_terminal=True, width=140)
    make_federation(callbacks=[ProgressDisplay(console)]).fit()
    shown = capsys.readouterr().out
    assert "3/3" in shown
    assert "client 2/2" in shown
    assert "left 0:00:00" in shown


class FakeLogger:
    def __init__(self):
        self.rows, self.status = [], None

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))

    def finalize(self, status):
        self.status = status


@pytest.mark.parametrize(("lr", "status"), [(0.1, "success"), (1e30, "failed")])
def test_loggers_get_a_row_a_round_and_a_true_end(tmp_path, lr, status):
    logger = FakeLogger()
    federation = make_federation(lr=lr, callbacks=[LoggerForwarding([logger], tmp_path)])
    try:
        federation.fit()
    except FloatingPointError:
        assert logger.rows == []
    else:
        assert [step for step, _ in logger.rows] == [1, 2, 3]
        assert {"test/acc", "train/loss", "comm/total_gb", "time/round_s"} <= logger.rows[0][1].keys()
    assert logger.status == status


@pytest.mark.parametrize(
    ("error", "state", "status"),
    [(ValueError, None, "failed"), (KeyboardInterrupt, None, "aborted"), (ValueError, "finished", "success")],
)
def test_loggers_of_a_run_that_ends_before_its_first_round_say_what_its_folder_says(tmp_path, error, state, status):
    if state:
        (tmp_path / "summary.json").write_text(json.dumps({"state": state}))
    logger = FakeLogger()
    with pytest.raises(error), LoggerForwarding([logger], tmp_path):
        raise error
    assert logger.status == status


def test_task_seeds_are_functions_of_seed_round_and_client():
    federation = make_federation(seed=3)
    tasks = [federation.client_side.task(client, federation.broadcast(0), Kept()) for client in (1, 4)]
    assert [task.seed for task in tasks] == [derive_seed(3, 0, client, "local training") for client in (1, 4)]


def test_who_holds_what_is_drawn_once(tmp_path):
    make_federation(partition=Shards(1), callbacks=[PartitionPicture(tmp_path)], num_rounds=1).fit()
    drawn = (tmp_path / "partition.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    (tmp_path / "partition.png").write_bytes(b"kept")
    make_federation(callbacks=[PartitionPicture(tmp_path)], num_rounds=1).fit()
    assert (tmp_path / "partition.png").read_bytes() == b"kept"
    counts = np.array([[3, 0, 1], [0, 5, 0]])
    bars, classes, _ = draw_partition(counts).axes
    (steps,) = bars.patches  # whatever the number of clients
    assert steps.get_data().values.tolist() == [4, 5]
    assert np.array_equal(classes.images[0].get_array(), counts.T)


def unequal(parameters):
    first, *others = parameters
    return torch.optim.SGD([{"params": [first], "lr": 0.3}, {"params": others}], lr=0.1)


def test_the_library_refuses_what_the_command_line_does():
    """An optimizer that breaks an algorithm's equations, or that moves what is frozen."""
    with pytest.raises(ValueError, match="SGD with momentum and SCAFFOLD"):
        make_federation(algorithm=Scaffold(), optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    with pytest.raises(
        ValueError, match=r"groups with the learning rates 0\.1, 0\.3 and SCAFFOLD, whose control variates"
    ):
        make_federation(algorithm=Scaffold(), optimizer=unequal)
    with pytest.raises(ValueError, match=r"weight_decay=0\.1: must be 0 with rotating factors"):
        make_federation(split=Rotating, optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.1))


def test_the_library_refuses_two_rates_within_a_weight_that_is_corrected():
    halves = {"personal": ["*parametrizations.*2"], "split": partial(Split, personal_rate=4.0)}
    with pytest.raises(ValueError, match=r"^personal_rate=4: must be 1 with factorization\.jacobian_correction"):
        make_federation(**halves, training={"jacobian_correction": 1.0})
    make_federation(**halves)


def test_the_library_trains_what_is_personal_at_its_own_rate():
    def personal(rate, **training):
        split = partial(Split, personal_rate=rate)
        federation = make_federation(personal=["*2"], split=split, num_rounds=1, training=training)
        federation.fit()
        return join({str(client): federation.personal[client] for client in federation.personal})

    assert not same(personal(1.0), personal(5.0))
    assert same(personal(5.0, callbacks=[Callback()]), personal(5.0))  # which trains copies of the module


def test_the_rates_of_a_split_do_not_stay_for_the_next_one_over_the_module():
    federation = make_federation(personal=["*2"], split=partial(Split, personal_rate=5.0))
    executor, sizes = federation.executor, {"num_clients": 5, "clients_per_round": 2, "num_rounds": 1}
    executor.module.rates = {"mine": 2.0}  # what a user's module may call so
    assert set(executor.module.personal_rates.values()) == {5.0}
    Federation(executor, split=Split(executor.initial_state(), ["*2"]), **sizes)
    assert not executor.module.personal_rates
    assert executor.module.rates == {"mine": 2.0}


@pytest.mark.parametrize(("options", "message"), [
    ({"training": {"jacobian_correction": 1.0}}, r"^jacobian_correction=1: must be 0 with Adam"),
    ({"recipe": FedPara(gamma=1.0, step=1.0)}, r"^step must be null with Adam"),
])  # fmt: skip
def test_the_library_refuses_gradients_that_are_made_for_sgd_with_another_optimizer(options, message):
    with pytest.raises(ValueError, match=message):
        make_federation(**options, optimizer=partial(torch.optim.Adam, lr=0.01))
    make_federation(**options)
