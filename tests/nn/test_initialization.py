"""The scale of the composed weight at the start."""

import copy

import pytest
import torch

from fedpara.nn import EqualSizeLowRank, FedPara, Hadamard, LowRank, PFedPara, factorizations, factorize
from fedpara.nn.initialization import fitted, he, he_fan_in, he_fan_out, kept_share, mean_step, variance, variance_core

SHAPES = [((256, 784), False), ((64, 64, 3, 3), True), ((512, 512, 3, 3), True), ((64, 3, 3, 3), True)]


@pytest.mark.parametrize("initialise", [variance, variance_core])
@pytest.mark.parametrize(("shape", "tucker"), SHAPES)
@pytest.mark.parametrize("nonlinearity", [None, torch.tanh])
def test_composed_weight_keeps_the_dense_standard_deviation(initialise, shape, tucker, nonlinearity):
    torch.manual_seed(0)
    fan_in = torch.Size(shape[1:]).numel()
    dense = torch.randn(shape) * (2 / fan_in) ** 0.5
    made = Hadamard(shape, min(11, shape[1]), tucker, nonlinearity)
    initialise(made, dense)
    assert float(made().detach().std()) == pytest.approx(float(dense.std()), rel=1e-3)
    assert abs(float(made().detach().mean())) < float(dense.std())


def test_low_rank_keeps_it_too():
    torch.manual_seed(0)
    dense = torch.randn(64, 32, 3, 3) * 0.05
    made = LowRank((64, 32, 3, 3), 8, tucker=True)
    variance(made, dense)
    assert float(made().detach().std()) == pytest.approx(float(dense.std()), rel=1e-3)


def test_published_starts_have_the_scales_paper_md_derives():
    """512 x 512 x 3 x 3 at R = 52: std(W) = 8R / (K^2 O I) = 1.8e-4 for fan in, 8 / (K^2 R) = 1.7e-2 for fan out."""
    torch.manual_seed(0)
    made, dense = Hadamard((512, 512, 3, 3), 52, True, None), torch.empty(0)
    he_fan_in(made, dense)
    assert float(made().detach().std()) == pytest.approx(8 * 52 / (9 * 512 * 512), rel=0.1)
    he_fan_out(made, dense)
    assert float(made().detach().std()) == pytest.approx(8 / (9 * 52), rel=0.1)
    he(made, dense)  # variances 2/R, 2/I, 2/(R K^2) over R^2 terms, squared for two branches
    assert float(made().detach().std()) == pytest.approx(8 / (512 * 9), rel=0.1)


def test_a_dense_weight_without_scale_is_refused():
    with pytest.raises(ValueError, match="no variance to keep"):
        variance(Hadamard((4, 4), 2, False), torch.zeros(4, 4))
    network = torch.nn.Sequential(torch.nn.Linear(40, 40))
    torch.nn.init.zeros_(network[0].weight)
    with pytest.raises(ValueError, match=r"^0: a dense weight of std 0\.0 has no variance to keep"):
        factorize(network, FedPara())


def test_a_dense_weight_that_no_product_of_tanh_reaches_is_refused():
    network = torch.nn.Sequential(torch.nn.Linear(40, 40))
    torch.nn.init.normal_(network[0].weight, std=1.5)
    with pytest.raises(ValueError, match=r"^0: a dense weight of std 1\.\d+ is too large for a product of tanh"):
        factorize(network, FedPara())
    factorize(network, FedPara(nonlinearity="identity"))


def test_the_step_of_a_network_in_half_precision_is_that_of_float32():
    scales = []
    for precision in (torch.float32, torch.float16):
        torch.manual_seed(0)
        layer = torch.nn.Linear(1024, 1024).to(precision)
        (made,) = (
            one for _, one in factorizations(factorize(layer, EqualSizeLowRank(gamma=0.1, step=0.5), delta=True))
        )
        scales.append(made.gradient_scale)
    assert scales[1] == pytest.approx(scales[0], rel=0.01)


@pytest.mark.parametrize("recipe", [FedPara(step=0.5), EqualSizeLowRank(step=0.5)])
@pytest.mark.parametrize("layer", [torch.nn.Conv2d(6, 8, 3), torch.nn.Linear(24, 20)])
def test_one_step_on_the_factors_moves_w_by_the_given_share_of_denses_step(recipe, layer):
    """The mean over all gradients J of <J, D g> / |J|^2, where g are the factors' gradients and D is dW / d factors."""
    torch.manual_seed(0)
    layer.reset_parameters()
    (factors,) = (made for _, made in factorizations(factorize(copy.deepcopy(layer), recipe)))
    weight, own = factors(), list(factors.parameters())
    plain = factors.refold(factors.compose(factors.factors))  # D^T is its gradient, without the scale
    moved = 0.0
    for unit in torch.eye(weight.numel()).view(-1, *weight.shape):
        taken = torch.autograd.grad(weight, own, unit, retain_graph=True)
        row = torch.autograd.grad(plain, own, unit, retain_graph=True)
        moved += sum(float((a * b).sum()) for a, b in zip(taken, row, strict=True))
    assert moved / weight.numel() == pytest.approx(0.5, rel=0.05)


def test_mean_step_follows_the_closed_form():
    """6 R^(2/3) s^(5/3) for a convolution's Hadamard product without tanh, 2 sqrt(R) s for X Y^T, at W's std s."""
    torch.manual_seed(0)
    convolution, matrix = Hadamard((64, 64, 3, 3), 11, True, None), LowRank((256, 300), 20, False)
    for made, std in ((convolution, 0.06), (matrix, 0.05)):
        variance(made, std * torch.randn(made.shape))
    assert mean_step(convolution) == pytest.approx(6 * 11 ** (2 / 3) * 0.06 ** (5 / 3), rel=0.1)
    assert mean_step(matrix) == pytest.approx(2 * 20**0.5 * 0.05, rel=0.05)


def trained(shape: tuple[int, ...]) -> torch.Tensor:
    """A weight whose singular values fall, as those of trained weights do."""
    u, s, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)).flatten(1), False)
    return ((u * s * torch.logspace(0, -2, len(s))) @ v).view(shape)


def test_a_fitted_low_rank_matrix_is_the_truncated_svd():
    """Eckart, Young 1936: no matrix of rank R is nearer than the first R singular values and vectors."""
    weight = trained((64, 48))
    torch.manual_seed(0)
    made = LowRank((64, 48), 8, tucker=False)
    fitted(made, weight)
    values = torch.linalg.svdvals(weight).square()
    assert kept_share(made, weight) == pytest.approx(float(values[:8].sum() / values.sum()), abs=1e-3)
    assert all(factor.grad is None and factor.requires_grad for factor in made.parameters())


@pytest.mark.parametrize("nonlinearity", [None, torch.tanh])
def test_a_fitted_hadamard_product_is_nearer_than_a_branch_and_to_noise_than_any_low_rank_matrix_of_its_size(
    nonlinearity,
):
    for weight, rank in ((trained((64, 48)), 4), (torch.randn(64, 48) * 0.05, 8)):
        torch.manual_seed(0)
        made = Hadamard((64, 48), 4, tucker=False, nonlinearity=nonlinearity)
        fitted(made, weight)
        values = torch.linalg.svdvals(weight).square()
        assert kept_share(made, weight) > float(values[:rank].sum() / values.sum())


@pytest.mark.parametrize("recipe", [FedPara, EqualSizeLowRank, PFedPara])
def test_fitted_factors_go_on_from_the_dense_network(recipe):
    torch.manual_seed(0)
    dense = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.Flatten(), torch.nn.Linear(16 * 16, 12)).double()
    with torch.no_grad():
        for layer in (dense[0], dense[2]):
            layer.weight.copy_(trained(tuple(layer.weight.shape)))
    images = torch.randn(4, 8, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        outputs, off = dense(images), {}
        for name in ("variance", "fitted"):
            made = factorize(copy.deepcopy(dense), recipe(gamma=0.5, initialization=name))
            off[name] = float((made(images) - outputs).square().mean() / outputs.square().mean())
    assert off["fitted"] < off["variance"] / 3


def test_fitted_factors_are_refused_where_factors_start_at_0():
    with pytest.raises(ValueError, match="initialization='fitted': must be another one with delta=True"):
        factorize(torch.nn.Linear(32, 32), FedPara(initialization="fitted"), delta=True)
