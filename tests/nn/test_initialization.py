"""The scale of the composed weight at the start."""

import pytest
import torch

from fedpara.nn import Hadamard, LowRank
from fedpara.nn.initialization import he, he_fan_in, he_fan_out, variance, variance_core

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
