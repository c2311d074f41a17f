"""The fastest float32 products of a processor.

Note [Float32 products]
~~~~~~~~~~~~~~~~~~~~~~~
In `highest` precision torch multiplies float32 matrices on a CPU by MKL, in `medium` by oneDNN, whose kernels may round
to bfloat16 (torch.set_float32_matmul_precision). On the processors that we had (AMD, with AVX2, and with AVX-512 and
its bfloat16 instructions) they do not: the error is the same, and they are more than twice as fast as MKL's. On
processors with matrix units (AMX) they round. There is no setting for oneDNN without rounding, so some products are
tried.

oneDNN prepares each product anew, which takes longer than a small product itself. The flash attention of torch 2.13 is
a loop over small products on a CPU: with oneDNN a vision transformer of 16 patches trained 2.7 times slower. So
attention then takes its two whole products. They are faster up to a few hundred tokens, and need memory for all
weights; for longer sequences take executor.matmul_precision=highest.
"""

from functools import cache

import torch
from torch import Tensor

FLASH = torch.backends.cuda.flash_sdp_enabled()  # false if the user has turned it off
EXACT = 1e-5  # relative error; float32 gives 2e-7, bfloat16 3e-3
SHAPES = [((), 64, 512, 64), ((), 257, 100, 129), ((2,), 128, 52, 468)]  # batch, rows, inner, columns


def set_products(precision: str, device: torch.device) -> None:
    """Let this process multiply float32 matrices at a precision, and choose the attention that is fast with it.

    Args:
        precision: `highest`, `high` or `medium`, see `torch.set_float32_matmul_precision`.
        device: where the network is.
    """
    torch.backends.cudnn.allow_tf32 = precision != "highest"  # convolutions are products too
    torch.set_float32_matmul_precision(precision)
    torch.backends.cuda.enable_flash_sdp(FLASH and (device.type != "cpu" or precision == "highest"))  # also of CPUs


@cache
def fastest_float32() -> str:
    """`medium` if its products are float32 on this processor, else `highest`; torch's setting stays as it is."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.device("cpu"):  # whatever device the caller makes tensors on, for instance "meta"
            return "medium" if max(map(_error, SHAPES)) < EXACT else "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def _error(shape: tuple[tuple[int, ...], int, int, int]) -> float:
    """The largest relative error of a product, as it is and with either operand transposed."""
    batch, rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(*batch, *size, generator=generator, dtype=torch.float32)
        for size in ((rows, inner), (inner, columns))
    )
    exact = a.double() @ b.double()
    found: list[Tensor] = [a @ b, a.mT.contiguous().mT @ b, a @ b.mT.contiguous().mT]
    return max(float((one.double() - exact).norm() / exact.norm()) for one in found)
