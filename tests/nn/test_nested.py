"""Nested ranks: the first columns of every factor, with a scale that keeps the size and the steps of W."""

import copy
from math import sqrt

import pytest
import torch
from torch import nn

from fedpara.nn import MUD, EqualSizeLowRank, FedPara, PFedPara, factorizations, factorize, merge, narrow, ranks_at
from fedpara.nn.initialization import mean_step
from fedpara.nn.nested import factor_names
from fedpara.state import num_elements, tensors
from helpers.cases import thinned

LINEAR, CONVOLUTION = nn.Linear(512, 256), nn.Conv2d(96, 128, 3)


def made(layer, recipe, share=1.0, seed=0):
    """A factorised copy of a layer, with a share of its columns."""
    torch.manual_seed(seed)
    network = factorize(nn.Sequential(copy.deepcopy(layer)), recipe)
    (factors,) = dict(factorizations(network)).values()
    narrow(network, {"0": round(share * factors.rank)})
    return network[0], factors


@pytest.mark.parametrize("share", thinned([0.25, 0.5]))
@pytest.mark.parametrize(("layer", "recipe", "power"), [
    (LINEAR, FedPara(gamma=0.5), 0.5),
    (LINEAR, FedPara(gamma=0.5, nonlinearity="identity"), 0.5),
    (LINEAR, EqualSizeLowRank(gamma=0.5), 0.5),
    (LINEAR, PFedPara(gamma=0.5), 0.5),
    (CONVOLUTION, FedPara(gamma=0.5), 1),
    (CONVOLUTION, FedPara(gamma=0.5, initialization="variance_core"), 1),
    (CONVOLUTION, FedPara(gamma=0.5, conv="reshape"), 0.5),
    (CONVOLUTION, EqualSizeLowRank(gamma=0.5), 1),
])  # fmt: skip
def test_the_size_of_the_weight_and_of_its_steps_stays(layer, recipe, power, share):
    """A branch of a matrix is scaled by sqrt(R / r), one with a core by R / r. Each draw is off by up to 7 %."""
    sizes, steps = [], []
    for seed in range(4):
        whole, factors = made(layer, recipe, seed=seed)
        small, narrowed = made(layer, recipe, share, seed)
        assert narrowed.branch_scale == pytest.approx((factors.rank / narrowed.rank) ** power)
        sizes.append(float(small.weight.detach().std() / whole.weight.detach().std()))
        steps.append(mean_step(narrowed) / mean_step(factors))
    assert sum(sizes) / 4 == pytest.approx(1, abs=0.04)
    assert sum(steps) / 4 == pytest.approx(1, abs=0.06)


def test_the_formula_of_two_matrices():
    _, factors = made(LINEAR, FedPara(gamma=0.5))
    small, _ = made(LINEAR, FedPara(gamma=0.5), 0.25)
    r = round(0.25 * factors.rank)
    first, second = (x[:, :r] @ y[:, :r].T * sqrt(factors.rank / r) for x, y in zip(factors.x, factors.y, strict=True))
    torch.testing.assert_close(small.weight, first.tanh() * second.tanh(), rtol=1e-4, atol=1e-6)


def test_the_formula_of_a_core():
    _, factors = made(CONVOLUTION, EqualSizeLowRank(gamma=0.5))
    small, _ = made(CONVOLUTION, EqualSizeLowRank(gamma=0.5), 0.25)
    rank, r = factors.rank, round(0.25 * factors.rank)
    core = factors.t.view(rank, 3, 3, rank)[:r, :, :, :r]  # T[a, b, k] of the formula is core[a, k, b]
    composed = torch.einsum("oa,akhb,ib->oikh", factors.x[:, :r], core, factors.y[:, :r]) * rank / r
    torch.testing.assert_close(small.weight, composed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [LINEAR, CONVOLUTION])
def test_a_narrow_network_is_small_and_can_be_merged(layer):
    rank = 7
    torch.manual_seed(0)
    network = narrow(factorize(nn.Sequential(copy.deepcopy(layer)), FedPara(gamma=0.5)), {"0": rank})
    plain = factorize(nn.Sequential(copy.deepcopy(layer)), FedPara(layers={"0": {"rank": rank}}))
    shapes = {name: tensor.shape for name, tensor in tensors(network).items()}
    assert shapes == {name: tensor.shape for name, tensor in tensors(plain).items()}
    inputs = torch.randn(2, *([512] if layer is LINEAR else [96, 5, 5]))
    before = network(inputs)
    assert torch.equal(merge(network)(inputs), before)


def test_all_columns_leave_the_network_as_it_is():
    network = factorize(nn.Sequential(copy.deepcopy(LINEAR)), FedPara(gamma=0.5))
    before, weight = dict(network.named_parameters()), network[0].weight
    narrow(network, ranks_at(network, FedPara(gamma=0.5), 0.5))
    assert all(before[name] is parameter for name, parameter in network.named_parameters())
    assert torch.equal(network[0].weight, weight)


def test_ranks_are_those_of_the_recipe_at_another_gamma():
    layers = {"2": {"rank": 5}}
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.Conv2d(32, 64, 3))
    own = FedPara(gamma=0.5, layers=layers)
    small = dict(factorizations(factorize(copy.deepcopy(network), FedPara(gamma=0.1, layers=layers))))
    network = factorize(network, own)
    assert ranks_at(network, own, 0.1) == {name: one.rank for name, one in small.items()}
    assert ranks_at(network, own, 0.1)["2"] == 5  # a layer with a rank of its own keeps it
    assert set(factor_names(network)) == set(small)


@pytest.mark.parametrize("recipe", [MUD(ratio=0.3), MUD(ratio=0.3, kronecker=True)])
def test_the_factors_of_an_update_are_not_narrowed(recipe):
    network = factorize(nn.Sequential(copy.deepcopy(LINEAR)), recipe)
    with pytest.raises(ValueError, match=r"^ranks='0': the factors of \w+Update cannot be narrowed"):
        narrow(network, {"0": 2})


def test_a_recurrent_layer_is_narrowed_by_its_weights():
    network = factorize(nn.Sequential(nn.LSTM(32, 32)), FedPara(gamma=0.5))
    narrow(network, ranks_at(network, FedPara(gamma=0.5), 0.0))
    ranks = {name: made.rank for name, made in factorizations(network)}
    assert ranks == {"0.weight_ih_l0": 6, "0.weight_hh_l0": 6}
    assert network(torch.randn(3, 32))[0].shape == (3, 32)


def test_layers_that_share_factors_stay_tied():
    torch.manual_seed(0)
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    second.weight = first.weight
    network = factorize(nn.Sequential(first, second), FedPara(gamma=0.5))
    narrow(network, {"0": 6})
    assert torch.equal(network[0].weight, network[1].weight)
    assert num_elements(tensors(network)) == 2 * 6 * 128 + 128


@pytest.mark.parametrize(("call", "message"), [
    (lambda network: narrow(network, {"1": 3}), "ranks='1': no factorised weight has this name; they are 0"),
    (lambda network: narrow(network, {"0": 0}), "ranks='0': 0 must be 1 to 22"),
    (lambda network: narrow(network, {"0": 23}), "ranks='0': 23 must be 1 to 22"),
    (lambda network: ranks_at(network, FedPara(budget=0.5), 0.1), "gamma=0.1: needs factorization.budget=null"),
    (lambda network: ranks_at(network, lambda *_: None, 0.1), "gamma=0.1: function has none; take factorization="),
])  # fmt: skip
def test_what_cannot_be_narrowed_is_refused(call, message):
    network = factorize(nn.Sequential(nn.Linear(128, 128)), FedPara(gamma=0.5))
    before = [parameter.shape for parameter in network.parameters()]
    with pytest.raises(ValueError, match=message):
        call(network)
    assert [parameter.shape for parameter in network.parameters()] == before
