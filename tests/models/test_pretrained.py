"""Weights to start from: those of an export, also of an LSTM; a head for other classes; wrong files are one line."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedpara.export import export_dense
from fedpara.files import UnusableFile
from fedpara.models import MLP, CharLSTM, load_pretrained


@pytest.mark.parametrize("weight_norm", [True, False])
def test_an_exported_lstm_is_the_same_network_again(tmp_path, weight_norm):
    torch.manual_seed(0)
    trained, other = (CharLSTM(11, hidden=6, weight_norm=weight_norm) for _ in range(2))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if name.endswith("gain"):
                parameter.mul_(1.5)
    file, texts = tmp_path / "model.safetensors", torch.randint(11, (3, 5))
    outputs = trained(texts)
    assert not torch.allclose(other(texts), outputs)
    export_dense(copy.deepcopy(trained), file, {})
    load_pretrained(other, file)
    torch.testing.assert_close(other(texts), outputs)


def test_a_head_of_other_classes_starts_anew_and_one_of_the_same_shape_does_not(tmp_path, caplog):
    source, same, other = MLP([8, 6, 4]), MLP([8, 6, 4]), MLP([8, 6, 3])
    file = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), file)
    head = copy.deepcopy(other.layers[3].state_dict())
    caplog.set_level("INFO")
    load_pretrained(other, file, ["layers.3.*"])
    assert torch.equal(other.layers[1].weight, source.layers[1].weight)
    assert torch.equal(other.layers[3].weight, head["weight"])
    assert caplog.messages == [
        "layers.3.bias, layers.3.weight start anew: weights.safetensors does not have them in this shape"
    ]
    load_pretrained(same, file, ["layers.3.*"])
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in same.state_dict().items())


def test_wrong_files_are_one_line_and_change_nothing(tmp_path):
    network = MLP([8, 6, 4])
    before, file = copy.deepcopy(network.state_dict()), tmp_path / "weights.safetensors"
    with pytest.raises(UnusableFile, match=r"weights.safetensors: cannot be read \(No such file"):
        load_pretrained(network, file)
    file.write_bytes(b"no weights")
    with pytest.raises(UnusableFile, match="must be a safetensors file"):
        load_pretrained(network, file)
    save_file(MLP([8, 5, 4]).state_dict(), file)
    with pytest.raises(UnusableFile, match=r"must be of this network, but layers.1.bias, layers.1.weight, layers.3.w"):
        load_pretrained(network, file, ["layers.3.bias"])
    plain = nn.LSTM(8, 6, bias=False).state_dict()
    save_file({f"layers.0.{name}": tensor for name, tensor in plain.items()}, file)
    with pytest.raises(UnusableFile, match="must be of this network"):
        load_pretrained(CharLSTM(11, hidden=6), file)
    save_file(network.state_dict(), file)
    with pytest.raises(UnusableFile, match="has changed since the run began"):
        load_pretrained(network, file, checksum=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
