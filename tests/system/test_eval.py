"""A run folder's model again: its logged metrics to the last digit, and exports that need none of this package."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from fedpara.app import evaluation
from fedpara.export import export_dense
from fedpara.models import CharLSTM
from fedpara.nn import FedPara, factorize
from fedpara.state import load_state
from helpers.cases import thinned
from helpers.runs import rows
from helpers.shell import SMALL, newest

PERSONAL = [*SMALL, "factorization=pfedpara", "sharing=pfedpara", "partition=shards", "partition.classes_per_client=3"]
PERSONAL += ["data.max_test=200", "model.optimizer.lr=0.3"]  # some client's accuracy is not 0
PLAIN = """
import json, sys
import torch
from safetensors.torch import load_file
from torch import nn

assert "fedpara" not in sys.modules
features, channels = nn.Sequential(), 1
for stage, width in enumerate((4, 8, 8, 8), 1):
    features.add_module(f"conv{stage}_1", nn.Conv2d(channels, width, 3, padding=1))
    features.add_module(f"norm{stage}_1", nn.GroupNorm(2, width))
    features.add_module(f"relu{stage}_1", nn.ReLU())
    features.add_module(f"pool{stage}", nn.MaxPool2d(2))
    channels = width
features.add_module("mean", nn.AdaptiveAvgPool2d(1))
features.add_module("flat", nn.Flatten())
network = nn.Sequential()
network.add_module("features", features)
network.add_module("classifier", nn.Sequential(nn.Linear(8, 10)))
network.load_state_dict(load_file(sys.argv[1]))
with torch.no_grad():
    torch.save(network.eval()(torch.load(sys.argv[2])), sys.argv[3])
assert "fedpara" not in sys.modules
"""


@pytest.fixture
def run(shell, tmp_path):
    assert shell(*PERSONAL)[0] == 0
    return newest(tmp_path)


def printed(out):
    return dict(line.split(": ") for line in out.splitlines() if ": " in line)


def test_logged_metrics_to_the_last_digit_of_global_and_personal_models(shell, run):
    status, _, out = shell(f"run={run}", program=evaluation)
    assert status == 0
    again, logged = printed(out), rows(run)[-1]
    for name in ("test/acc", "test/loss", "personal/acc_mean", "personal/acc_p10"):
        assert float(again[name]) == float(logged[name])
    for client in range(4):
        _, _, out = shell(f"run={run}", f"client={client}", program=evaluation)
        assert printed(out)[f"personal/acc/{client}"] == again[f"personal/acc/{client}"]
    assert len({again[f"personal/acc/{client}"] for client in range(4)}) > 1


def test_a_run_folder_is_tested_where_it_is_now(shell, run):
    moved = run.rename(run.with_name("moved"))
    status, error, out = shell(f"run={moved}", program=evaluation)
    assert (status, error) == (0, "")
    assert float(printed(out)["test/acc"]) == float(rows(moved)[-1]["test/acc"])


@pytest.mark.slow
@pytest.mark.parametrize("client", thinned([1, None]))
def test_exports_give_the_logits_of_the_run(shell, run, tmp_path, client):
    """Plain torch in a process that never sees this package; ONNX at a batch size that it was not traced with."""
    chosen = [] if client is None else [f"client={client}"]
    for form in ("dense", "onnx"):
        status, error, _ = shell(f"run={run}", f"export={form}", *chosen, program=evaluation)
        assert status == 0, error
    name = "model" if client is None else f"model-client{client}"
    experiment, federation = evaluation.load(run, [])
    inputs, _ = next(iter(experiment.datamodule.test_dataloader()))
    network = experiment.executor.module.network
    load_state(network, federation.model(client))
    with torch.no_grad():
        expected = network.eval()(inputs)

    torch.save(inputs, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", PLAIN, run / f"{name}.safetensors", tmp_path / "inputs.pt", tmp_path / "logits.pt"]
    subprocess.run(command, check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-6)  # memory format
    with safe_open(run / f"{name}.safetensors", "pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    assert (metadata["data"], metadata["num_classes"], metadata["input_shape"]) == ("mnist_small", 10, [1, 28, 28])
    assert metadata["metrics"]["round"] == 2
    pixels = experiment.datamodule.examples[1].inputs[: len(inputs)].float() / 255
    mean, std = (torch.tensor(metadata[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close((pixels - mean) / std, inputs)

    session = onnxruntime.InferenceSession(run / f"{name}.onnx")
    assert {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()} == metadata
    (logits,) = session.run(None, {"inputs": inputs.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    assert expected.abs().max() > 1e-3


def test_a_recurrent_network_is_exported_for_torchs_own_layers(tmp_path):
    network = factorize(CharLSTM(20, hidden=12), FedPara(gamma=0.3), exclude=["output"])
    texts = torch.randint(20, (5, 9))
    with torch.no_grad():
        expected = network(texts)
    export_dense(network, tmp_path / "model.safetensors", {})
    plain = nn.ModuleDict({"embedding": nn.Embedding(20, 8), "output": nn.Linear(12, 20)})
    plain["layers"] = nn.ModuleList([nn.LSTM(8, 12), nn.LSTM(12, 12)])
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        states = plain["embedding"](texts).transpose(0, 1)
        for layer in plain["layers"]:
            states, _ = layer(states)
        torch.testing.assert_close(plain["output"](states[-1]), expected, rtol=0, atol=1e-6)


def test_wrong_arguments_are_one_line(shell, run):
    wrong = {
        "export=torch": "export=torch: must be dense, onnx, hub or loha",
        "client=4": "client=4: must be 0 to 3",
        "client=x": "client=x: must be 0 to 3",
        "client=²": "client=²: must be 0 to 3",
        "exprot=dense": "exprot: no such key; allowed in the configuration: ",
        "paths.datadir=/x": "paths.datadir: no such key; did you mean paths.data_dir?; allowed in paths: ",
        "trainer.accelerator=[": "trainer.accelerator=[: not valid YAML",
    }
    for argument, line in wrong.items():
        status, error, _ = shell(f"run={run}", argument, program=evaluation)
        assert (status, error.count("\n")) == (2, 1)
        assert error.startswith(f"error: {line}")


def test_an_export_to_where_nothing_can_be_written_is_one_line(shell, run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("fedpara.files.os.replace", full)
    status, error, _ = shell(f"run={run}", "export=dense", program=evaluation)
    assert (status, error) == (2, "error: [Errno 28] No space left on device: 'model.safetensors'\n")
