"""Next-character network: two LSTM layers, weight-normalised (FedPara, ICLR 2022, Table 11; McMahan et al. 2017).

The paper gives two layers of 256, 80 classes and weight normalisation (Salimans and Kingma 2016) for the dense, the
low-rank and the FedPara network alike. The embedding's width, 8, is LEAF's (Caldas et al. 2018).
"""

from typing import Annotated

import torch
from pydantic import Field, validate_call
from torch import Tensor, nn

from fedpara.private.torch import lstm
from fedpara.state import State

Positive = Annotated[int, Field(ge=1)]


class LSTMLayer(nn.Module):
    """One LSTM layer whose two matrices (for all four gates) are the weights of two `nn.Linear` layers.

    So they are factorised, split and merged as those of any other layer, and each is composed once in a forward pass. A
    parametrized `nn.LSTM` composes them three times.

    Args:
        input_size, hidden_size: width of the inputs and of the state (H).
        weight_norm: whether each row w of both matrices is used as g w / |w|, with g learned.
    """

    def __init__(self, input_size: int, hidden_size: int, weight_norm: bool) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(input_size, 4 * hidden_size)
        self.recurrent = nn.Linear(hidden_size, 4 * hidden_size)
        for layer in (self.input, self.recurrent):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)  # as nn.LSTM
        norms = [layer.weight.detach().norm(dim=1, keepdim=True) for layer in (self.input, self.recurrent)]
        self.input_gain = nn.Parameter(norms[0]) if weight_norm else None
        self.recurrent_gain = nn.Parameter(norms[1]) if weight_norm else None

    def forward(self, inputs: Tensor) -> Tensor:
        """(T, B, input_size) to the states (T, B, H), starting from zeros.

        Autocast is off here: on a GPU it takes float16 even if bfloat16 was asked for, without a scaled loss
        (AutocastRNN.cpp).
        """
        weights = [
            _normalized(self.input.weight, self.input_gain),
            _normalized(self.recurrent.weight, self.recurrent_gain),
            self.input.bias,
            self.recurrent.bias,
        ]
        inputs = inputs.to(weights[0].dtype)
        zeros = inputs.new_zeros(1, inputs.shape[1], self.hidden_size)
        with torch.autocast(inputs.device.type, enabled=False):
            # has biases, 1 layer, no dropout, training or not, one direction, time is the first dimension
            states, _, _ = lstm(inputs, (zeros, zeros), weights, True, 1, 0.0, self.training, False, False)
        return states

    def plain(self) -> nn.LSTM:
        """Torch's own layer with the same outputs; the gains are multiplied into its weights."""
        placed = {"device": self.input.bias.device, "dtype": self.input.bias.dtype}
        layer = nn.LSTM(self.input.in_features, self.hidden_size, **placed)
        weights = {
            "weight_ih_l0": _normalized(self.input.weight, self.input_gain),
            "weight_hh_l0": _normalized(self.recurrent.weight, self.recurrent_gain),
            "bias_ih_l0": self.input.bias,
            "bias_hh_l0": self.recurrent.bias,
        }
        layer.load_state_dict(weights)
        return layer

    def from_plain(self, state: State, name: str) -> State:
        """`state` with this layer's tensors in place of those of its `plain()`, if it has these.

        Args:
            name: the layer's name, in front of the names in `state`.
        """
        given, own = dict(state), {"input": "ih", "recurrent": "hh"}
        if any(f"{name}.{kind}_{plain}_l0" not in given for kind in ("weight", "bias") for plain in own.values()):
            return given
        for layer, plain in own.items():
            weight = given[f"{name}.{layer}.weight"] = given.pop(f"{name}.weight_{plain}_l0")
            given[f"{name}.{layer}.bias"] = given.pop(f"{name}.bias_{plain}_l0")
            if self.input_gain is not None and weight.dim() == 2:
                given[f"{name}.{layer}_gain"] = weight.norm(dim=1, keepdim=True)
        return given


def _normalized(weight: Tensor, gain: Tensor | None) -> Tensor:
    return weight if gain is None else gain * nn.functional.normalize(weight, dim=1)


class CharLSTM(nn.Module):
    """Embedding, LSTM layers, one fully connected layer on the last state.

    Args:
        num_classes: number of characters, for inputs and logits.
        embedding: width of a character's embedding.
        hidden: width of each LSTM layer's state.
        num_layers: number of LSTM layers.
        weight_norm: see `LSTMLayer`.
    """

    @validate_call
    def __init__(
        self,
        num_classes: Positive,
        embedding: Positive = 8,
        hidden: Positive = 256,
        num_layers: Positive = 2,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, embedding)
        sizes = [embedding] + (num_layers - 1) * [hidden]
        self.layers = nn.Sequential(*(LSTMLayer(size, hidden, weight_norm) for size in sizes))
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, characters: Tensor) -> Tensor:
        """Indices (B, T) to the logits (B, num_classes) of the next character."""
        return self.output(self.layers(self.embedding(characters).transpose(0, 1))[-1])
