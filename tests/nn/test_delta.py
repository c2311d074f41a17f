"""Fine-tuning: factors are added to frozen weights, and only what is trained is part of the network's state."""

import copy
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fedpara.models import VGG
from fedpara.nn import Dense, EqualSizeLowRank, FedPara, PFedPara, factorizations, factorize, merge
from fedpara.nn.frozen import constants
from fedpara.state import tensors

RECIPES = [EqualSizeLowRank(gamma=0.1), FedPara(gamma=0.1), FedPara(gamma=0.1, nonlinearity="identity"), PFedPara()]


def network() -> nn.Module:
    torch.manual_seed(0)
    return VGG([[16], [16, 32]], hidden=[64], num_classes=10, dropout=0.0)


def images(number: int = 4) -> torch.Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)
def test_only_factors_and_what_is_named_are_trained_and_the_start_is_the_pretrained_network(recipe):
    dense = network()
    tuned = factorize(copy.deepcopy(dense), recipe, delta=True, trainable=["classifier.3.*", "*norm*"])
    assert torch.equal(tuned(images()), dense(images()))
    state = tensors(tuned)
    assert constants(tuned) == {name for name, _ in tuned.named_buffers()}
    beside = {name for name in state if ".parametrizations." not in name}
    assert beside == {name for name in tensors(dense) if "classifier.3" in name or "norm" in name}
    assert {name for name, _ in tuned.named_parameters()} == set(state)

    before = copy.deepcopy(tuned)
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(tuned(images()), torch.arange(4)).backward()
        optimizer.step()
    for name, constant in before.named_buffers():
        assert torch.equal(tuned.get_buffer(name), constant), name
    moved = [name for name, tensor in tensors(tuned).items() if not torch.equal(tensor, tensors(before)[name])]
    assert len(moved) == len(
        state
    )  # every factor has moved by the third step, also those without a gradient in the first

    outputs = tuned(images())
    merged = merge(tuned)
    assert torch.equal(merged(images()), outputs)
    assert {name: t.shape for name, t in merged.state_dict().items()} == {
        n: t.shape for n, t in dense.state_dict().items()
    }


def test_without_factors_only_what_is_named_is_trained_and_travels():
    """A head alone (linear probing), or the biases alone (BitFit, Ben Zaken et al. 2022)."""
    dense = network()
    for trainable in (["classifier.3.*"], ["*.bias"]):
        tuned = factorize(copy.deepcopy(dense), Dense(), delta=True, trainable=trainable)
        named = {name for name, _ in dense.named_parameters() if fnmatchcase(name, trainable[0])}
        assert set(tensors(tuned)) == {name for name, _ in tuned.named_parameters()} == named
        assert torch.equal(tuned(images()), dense(images()))
        F.cross_entropy(tuned(images()), torch.arange(4)).backward()
        torch.optim.SGD(tuned.parameters(), lr=0.1).step()
        after = merge(tuned).state_dict()
        assert {name for name, before in dense.state_dict().items() if not torch.equal(after[name], before)} == named


def test_a_layer_that_cannot_have_factors_can_be_frozen():
    """Its weight is computed by a parametrisation, whose parts become constants."""
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.LSTM(8, 8), nn.Flatten())
    assert set(tensors(factorize(net, Dense(), delta=True, trainable=["1.*"]))) >= {"1.weight_hh_l0"}
    assert all(name.startswith("1.") for name, _ in net.named_parameters())


def test_low_rank_is_lora():
    """Hu et al. 2022: h = W0 x + B A x with B = 0 at the start, W0 and the bias frozen."""
    torch.manual_seed(0)
    dense = nn.Linear(24, 16)
    tuned = factorize(nn.Sequential(copy.deepcopy(dense)), EqualSizeLowRank(gamma=0.3), delta=True)
    factors = tuned[0].parametrizations.weight[0]
    b, a = (tensor.detach().clone().requires_grad_() for tensor in (factors.x, factors.y))
    assert not b.any()
    x, y = torch.randn(8, 24), torch.randn(8, 16)
    ours, lora = torch.optim.SGD(tuned.parameters(), lr=0.1), torch.optim.SGD([b, a], lr=0.1)
    for _ in range(5):
        for optimizer, outputs in ((ours, tuned(x)), (lora, dense(x) + x @ a @ b.mT)):
            optimizer.zero_grad()
            (outputs - y).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(factors.x, b)
    torch.testing.assert_close(factors.y, a)


def test_shared_weights_share_their_base_and_their_constants():
    first, second = nn.Linear(20, 20), nn.Linear(20, 20)
    second.weight, second.bias = first.weight, first.bias
    tuned = factorize(nn.Sequential(first, second), FedPara(gamma=0.1), delta=True)
    assert tuned[0].bias is tuned[1].bias
    merged = merge(tuned)
    assert merged[0].weight is merged[1].weight
    assert merged[0].bias is merged[1].bias
    assert list(tensors(merged)) == ["0.weight", "0.bias"] or set(tensors(merged)) == {"0.weight", "0.bias"}


def test_a_transformer_can_be_tuned():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    dense = nn.Sequential(nn.Embedding(11, 32), nn.TransformerEncoder(layer, 2), nn.Linear(32, 5))
    tokens = torch.arange(6).view(2, 3)
    tuned = factorize(copy.deepcopy(dense), FedPara(gamma=0.1), delta=True, trainable=["2.*"])
    torch.testing.assert_close(tuned(tokens), dense(tokens))
    state = tensors(tuned)
    assert all(".parametrizations." in name or name.startswith("2.") for name in state)
    tuned(tokens).sum().backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters())
    assert "1.layers.0.self_attn.in_proj_weight" in dict(factorizations(tuned))
    with parametrize.cached():
        outputs = tuned(tokens)
    torch.testing.assert_close(merge(tuned)(tokens), outputs)


@pytest.mark.parametrize("delta", [False, True])
def test_attention_whose_keys_have_another_size_has_a_weight_for_each_projection(delta):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, kdim=24, vdim=16, batch_first=True)
    tuned, given = copy.deepcopy(attention), (torch.randn(2, 5, 32), torch.randn(2, 5, 24), torch.randn(2, 5, 16))
    factorize(tuned, FedPara(gamma=0.1), delta=delta)
    assert {name for name, _ in factorizations(tuned)} == {
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj",
    }
    outputs = tuned(*given)[0]
    assert torch.allclose(outputs, attention(*given)[0], atol=1e-6) == delta
    with pytest.raises(ValueError, match="q_proj_weight: a parametrisation"):
        factorize(tuned, FedPara())
    torch.testing.assert_close(merge(tuned)(*given)[0], outputs)


def test_a_network_that_was_frozen_first_trains_what_is_named():
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4)).requires_grad_(False)
    tuned = factorize(net, FedPara(), delta=True, trainable=["1.*"])
    assert all(parameter.requires_grad for parameter in tuned.parameters())


class Own(nn.Module):
    """Its attribute has a name that the bookkeeping once had."""

    def __init__(self):
        super().__init__()
        self.constants, self.scale, self.layer = [1.0, 2.0], nn.Parameter(torch.ones(1)), nn.Linear(32, 32)


@pytest.mark.parametrize("delta", [False, True])
def test_attributes_of_a_users_network_are_left_alone(delta):
    tuned = factorize(Own(), FedPara(), delta=delta)
    if delta:
        del tuned.scale
        tuned.scale = nn.Parameter(torch.zeros(1))  # in place of the constant
    assert merge(tuned).constants == [1.0, 2.0]
    assert tuned.scale.item() == (0 if delta else 1)


def test_step_is_that_of_the_start_at_zero():
    tuned = factorize(nn.Sequential(nn.Linear(64, 64)), FedPara(gamma=0.3, step=0.5), delta=True)
    layer = tuned[0]
    gradient = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    before = layer.weight.detach().clone()
    (layer.weight * gradient).sum().backward()
    rate = 1e-3
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter -= rate * parameter.grad
    moved = (layer.weight.detach() - before) * -gradient / rate  # along the gradient, of mean square 1
    assert 0.35 < float(moved.mean()) < 0.65


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trainable": ["0.*"]}, r"trainable=\['0.\*'\]: must be empty without delta"),
        ({"delta": True, "trainable": ["head.*"]}, r"trainable='head.\*': matches no parameter; they are 0.weight"),
        ({"delta": True, "trainable": ["0.*", "1.*"]}, "no layer is left to factorise"),
        ({"delta": True, "recipe": Dense()}, r"trainable=\[\]: must name parameters with delta=True and Dense\(\)"),
    ],
)
def test_errors(arguments, message):
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    before = list(net.state_dict())
    with pytest.raises(ValueError, match=message):
        factorize(net, **{"recipe": FedPara()} | arguments)
    assert list(net.state_dict()) == before
