"""FedMUD from the command line: a run that is resumed, its dense model, and refusals in one line."""

import pytest
import torch
from safetensors.torch import load_file

from fedpara.app import evaluation
from fedpara.runs import Run
from helpers.runs import rows, rows_without_times
from helpers.shell import newest

MUD = [
    "model=mlp", "data.max_train=40", "data.max_test=20", "data.batch_size=8", "federation.num_clients=2",
    "federation.clients_per_round=1", "trainer.max_epochs=1", "logger=none", "callbacks.partition_picture=null",
    "factorization=mud", "federation.catch_up=true", "factorization.ratio=0.2",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_is_resumed_to_the_same_bits_and_exports_dense_weights(shell, tmp_path):
    assert shell(*MUD, "federation.num_rounds=3")[0] == 0
    whole = newest(tmp_path)
    assert shell(*MUD, "federation.num_rounds=2")[0] == 0
    resumed = newest(tmp_path)
    assert shell(f"resume={resumed}", "federation.num_rounds=3")[0] == 0
    assert rows_without_times(resumed) == rows_without_times(whole)
    state, again = (load_file(folder / "checkpoint.safetensors") for folder in (whole, resumed))
    assert state.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    sizes = Run(whole).summary["parameters"]
    assert sizes["up"] < sizes["shared"] == sizes["dense"]  # clients send factors, and are sent weights
    assert shell(f"run={whole}", "export=hub", program=evaluation)[0] == 0
    assert f"and sent {sizes['up']:,} of the {sizes['dense']:,} parameters" in (whole / "hub/README.md").read_text()
    status, _, out = shell(f"run={whole}", "export=dense", program=evaluation)
    assert status == 0
    assert f"test/acc: {float(rows(whole)[-1]['test/acc'])}" in out
    dense = load_file(whole / "model.safetensors")
    assert not any("parametrizations" in name for name in dense)
    name = next(name for name in state if name.endswith("parametrizations.weight.1.weight"))
    layer = name.rpartition("model/")[2].partition(".parametrizations")[0]
    assert torch.equal(dense[f"{layer}.weight"], state[name])


@pytest.mark.parametrize(("typed", "line"), [
    ("algorithm=scaffold", "federation: algorithm must be fedavg or fedprox where factors are reset"),
    ("link=topk", "federation: error_feedback=True: must be false where factors are reset (factorization=mud)"),
    ("sharing=fedper", "sharing: what travels must be the whole model, sharing=full, where factors are reset"),
    ("link=bf16", "federation.catch_up=True: link.down_codec must be a Cast to float32 where factors are reset"),
    ("privacy=gaussian privacy.noise_multiplier=0", "federation: privacy must be none where factors are reset"),
    ("factorization.ratio=1", "factorization.ratio=1: Input should be less than 1"),
    ("factorization.a=inf", "factorization.a=inf: Input should be less than or equal to"),
])  # fmt: skip
def test_what_it_refuses_is_one_line(shell, typed, line):
    status, error, _ = shell(*MUD, *typed.split(" "))
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith(f"error: {line}"), error
