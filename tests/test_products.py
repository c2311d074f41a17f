"""Float32 products are float32 by default, by the fastest kernels that are."""

from dataclasses import replace

import pytest
import torch

from fedpara.execution import SerialExecutor
from fedpara.products import _error, fastest_float32
from helpers.federations import make_federation


@pytest.fixture
def anew():
    """The processor is asked again, in this test and after it."""
    fastest_float32.cache_clear()
    yield
    fastest_float32.cache_clear()


@pytest.mark.parametrize("shape", [((), 300, 512, 200), ((2,), 512, 137, 1233)])
def test_products_of_an_executor_are_float32(shape):
    made = make_federation().executor
    assert torch.get_float32_matmul_precision() == fastest_float32()
    assert _error(shape) < 1e-6
    SerialExecutor(replace(made.training, matmul_precision="highest"))
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def after():
    """The settings of the process are those of other tests again."""
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cuda.enable_flash_sdp(before[1])


@pytest.mark.parametrize(("precision", "flash"), [("medium", False), ("highest", True)])
@pytest.mark.usefixtures("after")
def test_flash_attention_is_not_taken_with_products_that_are_prepared_one_by_one(precision, flash):
    made = make_federation().executor
    SerialExecutor(replace(made.training, matmul_precision=precision))
    assert torch.backends.cuda.flash_sdp_enabled() == flash


def test_a_processor_that_rounds_keeps_the_highest_precision(anew, monkeypatch):
    product = torch.Tensor.__matmul__

    def rounded(a, b):
        low = a.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"
        return product(a.bfloat16(), b.bfloat16()).float() if low else product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    torch.set_float32_matmul_precision("high")
    assert fastest_float32() == "highest"
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")


def test_the_processor_is_asked_whatever_a_caller_makes_tensors_of(anew, monkeypatch):
    expected = fastest_float32()
    fastest_float32.cache_clear()
    with torch.device("meta"):
        assert fastest_float32() == expected

    made = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: made.append(a.dtype) or product(a, b))
    fastest_float32.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        fastest_float32()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.float32 in made
