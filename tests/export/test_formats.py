"""Graphs: written whole or not at all."""

import os

import pytest
import torch
from torch import nn

from fedpara.export import export_onnx
from fedpara.models import MLP


@pytest.mark.slow
def test_a_graph_that_is_cut_short_leaves_the_good_one(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    path, inputs = tmp_path / "m.onnx", torch.zeros(2, 12)
    export_onnx(MLP([12, 8, 3]), inputs, path, {"data": "random"})
    good = path.read_bytes()
    assert {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props} == {"data": "random"}

    def full(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        export_onnx(MLP([12, 8, 3]), inputs, path, {})
    assert path.read_bytes() == good
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_weights_that_no_graphs_file_can_hold_are_refused(tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    large = nn.Linear(2**15, 2**15, device="meta")
    with pytest.raises(ValueError, match=r"^export=onnx: a file holds less than 2 GiB, the weights are 4295098368"):
        export_onnx(large, torch.zeros(2, 2**15), tmp_path / "m.onnx", {})
