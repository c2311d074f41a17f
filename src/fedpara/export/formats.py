"""A trained model for use without this package: merged dense weights, or a graph.

The exported network takes the inputs of a batch: images as float32 (B, C, H, W), scaled to 0 to 1 and normalised by
the data set's mean and standard deviation; texts as int64 (B, T).
"""

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedpara.files import write_atomically
from fedpara.installation import install_line
from fedpara.models import LSTMLayer
from fedpara.nn import merge
from fedpara.state import State

ONNX_BYTES = 2**31  # of protobuf, the format of a graph with its weights
WAY_OUT = "export=dense writes merged weights"


def export_dense(network: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Merge `network` in place and write its weights as safetensors, under the dense network's names.

    An `LSTMLayer` is replaced by the `nn.LSTM` of the same weights, whose output has another form, so `network` cannot
    be run afterwards.

    Args:
        metadata: facts about the model, stored beside the weights.
    """
    for name, layer in list(merge(network).named_modules()):
        if isinstance(layer, LSTMLayer):
            network.set_submodule(name, layer.plain())
    write_safetensors(network.state_dict(), path, metadata)


def write_safetensors(state: State, path: Path, metadata: dict[str, str]) -> None:
    """Write tensors as safetensors; in the file they share no memory, even if two are the same tensor."""
    own = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    write_atomically(path, save(own, metadata))


def export_onnx(network: nn.Module, inputs: Tensor, path: Path, metadata: dict[str, str]) -> None:
    """Merge `network` in place and write it as an ONNX graph from `inputs` to `logits`, for batches of any size.

    The file is written atomically: a good earlier one survives a full disk.

    Args:
        inputs: a batch of two or more examples, as the network takes them.
        metadata: as for `export_dense`; it goes into the graph's `metadata_props`.

    Raises:
        ValueError: the package that writes ONNX is not installed, or the weights do not fit into one file.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ValueError(f"export=onnx: needs onnxscript; {install_line('export')}")
    tensors = [*merge(network).parameters(), *network.buffers()]
    if (num_bytes := sum(tensor.nbytes for tensor in tensors)) >= ONNX_BYTES:
        raise ValueError(f"export=onnx: a file holds less than 2 GiB, the weights are {num_bytes} bytes; {WAY_OUT}")
    for chatty in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own parts
        program: Any = torch.onnx.export(
            network.cpu().eval(), (inputs.cpu(),), dynamo=True, verbose=False, input_names=["inputs"],
            output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
        program.model.metadata_props.update(metadata)
        write_atomically(path, program.model_proto.SerializeToString())
