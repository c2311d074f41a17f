"""Many copies of a network as one: the clients' channels lie side by side, and every layer computes all at once.

Activations keep their shape except for the channels: (B, K C, ...) for K clients, one client after the other.
Convolutions become grouped, linear layers become batched products, and group norms have K times the groups; layers
without parameters stay. Every parameter, also of FedPara's factors, gets a first dimension for the client.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedpara.nn import Factorization
from fedpara.nn.frozen import Base
from fedpara.private.torch import own_buffers, own_parameters
from fedpara.state import State, copy_of, on_cpu, tensors

PARTS_OF_WEIGHTS = Factorization, Base, nn.utils.parametrize.ParametrizationList
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _convolution(function: Callable[..., Tensor], layer: Convolution, inputs: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    bias = None if bias is None else bias.flatten()
    groups = len(weight) * layer.groups
    return function(inputs, weight.flatten(0, 1), bias, layer.stride, layer.padding, layer.dilation, groups)


def _linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    own = inputs.view(len(inputs), len(weight), -1).transpose(0, 1)
    outputs = torch.bmm(own, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), own, weight.mT)
    return outputs.transpose(0, 1).flatten(1)


def _group_norm(layer: nn.GroupNorm, inputs: Tensor) -> Tensor:
    return F.group_norm(
        inputs, len(layer.weight) * layer.num_groups, layer.weight.flatten(), layer.bias.flatten(), layer.eps
    )


def _forward(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The forward function of a folded layer with stacked parameters; None if such a layer cannot be folded."""
    match layer:
        case nn.Conv1d():
            return partial(_convolution, F.conv1d, layer)
        case nn.Conv2d():
            return partial(_convolution, F.conv2d, layer)
        case nn.Conv3d():
            return partial(_convolution, F.conv3d, layer)
        case nn.Linear():
            return partial(_linear, layer)
        case nn.GroupNorm():
            return partial(_group_norm, layer)
    return None


class Dropouts(nn.Module):
    """Dropout per client: each client has its own generator, and draws the masks that it would draw alone."""

    def __init__(self, probability: float, clients: "Folded") -> None:
        super().__init__()
        self.probability = probability
        self.draw = clients.draw  # not the module itself, which would be registered as its own part

    def forward(self, inputs: Tensor) -> Tensor:
        """Set values to zero with the probability, and scale the others."""
        if not (self.training and self.probability):
            return inputs
        return inputs * self.draw(inputs, 1 - self.probability)


class Folded(nn.Module):
    """K copies of `network` under the same parameter names, each with a first dimension K.

    Args:
        device: where the random numbers of dropout are drawn.

    Attributes:
        sizes: for each client the number of examples in its current batch; the rest of the batch is padding.
        generators: for each client the generator of its dropout; they stay the same objects.

    Raises:
        ValueError: a layer cannot be folded, or the network does more than its layers show.
    """

    def __init__(self, network: nn.Module, num_clients: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.num_clients = num_clients
        self.sizes: Sequence[int] = ()
        self.generators = [torch.Generator(device) for _ in range(num_clients)]
        self.network = copy.deepcopy(network)
        stacks: dict[nn.Parameter, nn.Parameter] = {}
        for name, layer in list(self.network.named_modules()):
            self._fold(name, layer, stacks)

    def _fold(self, name: str, layer: nn.Module, stacks: dict[nn.Parameter, nn.Parameter]) -> None:
        """Fold one layer; `stacks` maps earlier parameters to their stacks, for layers that share one."""
        own = [key for key, value in own_parameters(layer).items() if value is not None]
        forward = _forward(layer)
        if isinstance(layer, nn.Dropout):
            parent, _, last = name.rpartition(".")
            setattr(self.network.get_submodule(parent), last, Dropouts(layer.p, self))
        elif forward and getattr(layer, "padding_mode", "zeros") == "zeros" and getattr(layer, "affine", True):
            layer.forward = forward
        elif (own or own_buffers(layer)) and not isinstance(layer, PARTS_OF_WEIGHTS):
            raise ValueError(f"{name or 'the network'} is a {type(layer).__name__}")
        for key in own:
            parameter = own_parameters(layer)[key]
            assert parameter is not None
            if parameter not in stacks:
                stacked = parameter.detach().new_empty(self.num_clients, *parameter.shape)
                stacks[parameter] = nn.Parameter(stacked, requires_grad=parameter.requires_grad)
            own_parameters(layer)[key] = stacks[parameter]
        if isinstance(layer, PARTS_OF_WEIGHTS):
            for key in layer.state_dict(keep_vars=True).keys() & own_buffers(layer):  # of updates: a round changes them
                buffer = layer.get_buffer(key)
                own_buffers(layer)[key] = buffer.new_empty(self.num_clients, *buffer.shape)
        if forward:
            for key, constant in layer.named_buffers(recurse=False):  # of fine-tuning
                own_buffers(layer)[key] = constant.expand(self.num_clients, *constant.shape)

    @property
    def drawing(self) -> Sequence[torch.Generator]:
        """The generators that a training step uses; none without dropout, because each costs a replay two kernels."""
        drawn = any(isinstance(layer, Dropouts) and layer.probability for layer in self.modules())
        return self.generators if drawn else ()

    def load(self, states: Sequence[State]) -> None:
        """Load one state for each client."""
        with torch.no_grad():
            for name, tensor in tensors(self.network).items():
                tensor.copy_(torch.stack([state[name] for state in states]))

    def read(self, clients: Sequence[int]) -> list[State]:
        """Copies of some clients' states on the CPU; if all are read, each stacked tensor leaves its device once."""
        stacks = tensors(self.network)
        if len(clients) == self.num_clients:
            stacks = on_cpu(stacks)
        return [copy_of({name: stack[client] for name, stack in stacks.items()}) for client in clients]

    def draw(self, inputs: Tensor, probability: float) -> Tensor:
        """Draw the factors of a dropout, 0 or 1 / probability, with each client's generator for its own examples."""
        batch, channels, *rest = inputs.shape
        factors = inputs.new_zeros(batch, self.num_clients, channels // self.num_clients, *rest)
        last = inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format  # in which a client alone draws
        for client, (size, generator) in enumerate(zip(self.sizes, self.generators, strict=True)):
            mask = torch.empty_like(factors[:size, client], memory_format=order)
            factors[:size, client] = mask.bernoulli_(probability, generator=generator) / probability
        return factors.view_as(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, K, ...) to the logits (B, K, classes)."""
        inputs = inputs.flatten(1, 2)
        if inputs.dim() == 4:  # halves the time of grouped convolutions on a CPU
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return self.network(inputs).unflatten(1, (self.num_clients, -1))


@torch.no_grad()
def require_foldable(network: nn.Module, example: Tensor) -> None:
    """Check that three folded copies with different weights and inputs give the same as each one alone.

    They must in training too, with the same masks of dropout.

    Args:
        example: a batch of one, as the network takes it.

    Raises:
        ValueError: they do not.
    """
    network = copy.deepcopy(network).double().cpu()  # so that no product is rounded to TF32
    example = example.cpu().double() if example.is_floating_point() else example.cpu()
    folded = Folded(network, 3)
    own = tensors(network)  # clones keep the strides, on which the order of dropout's draws depends
    states = [{n: t.clone().add_(torch.randn_like(t), alpha=0.1 * k) for n, t in own.items()} for k in range(3)]
    folded.load(states)
    folded.sizes = [len(example)] * 3
    examples = [example + 0.1 * k * torch.randn_like(example) for k in range(3)]
    with torch.random.fork_rng(devices=[]):
        for training in (False, True):
            network.train(training)
            folded.train(training)
            alone = []
            for seed, (state, one) in enumerate(zip(states, examples, strict=True)):
                torch.manual_seed(seed)
                folded.generators[seed].manual_seed(seed)
                alone.append(torch.func.functional_call(network, state, (one,)))
            drawn = torch.get_rng_state()
            try:
                together = folded(torch.stack(examples, dim=1))
                torch.testing.assert_close(together, torch.stack(alone, dim=1), rtol=1e-6, atol=1e-6)
            except (RuntimeError, AssertionError, IndexError) as error:
                raise ValueError(f"{type(network).__name__} does more than its layers show") from error
            if not torch.equal(drawn, torch.get_rng_state()):
                raise ValueError(f"{type(network).__name__} draws random numbers elsewhere than in nn.Dropout")
