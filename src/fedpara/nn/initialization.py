"""Initialisations of the factors, by name. Each fills a factorisation in place, given the dense weight it replaces.

The paper asks for He initialisation (He et al. 2015) of the factors. It does not say what that means for three factors,
two of which have no spatial extent, and published code reads it in three ways. docs/results/initialisation.md
compares them. `fitted` is not the paper's: it starts from weights that were trained before.
"""

from collections.abc import Callable, Sequence
from math import sqrt

import torch
from torch import Tensor

from fedpara.nn.factorizations import Factorization, product

Initialization = Callable[[Factorization, Tensor], None]


def _fill(factorization: Factorization, variances: dict[str, float]) -> None:
    """Draw each kind of factor ("x", "y", "t") from N(0, variance), one branch after the other."""
    with torch.no_grad():
        for branch in factorization.branches():
            for kind, factor in branch.items():
                factor.normal_(0, sqrt(variances[kind]))


def _fans(factorization: Factorization) -> tuple[int, int, int, int]:
    """Rows of X, rows of Y, rank, and the core's number of kernel positions."""
    branch, kernel = factorization.branches()[0], 1
    (rows, rank), columns = branch["x"].shape, len(branch["y"])
    if "t" in branch:
        kernel = branch["t"].shape[1] // rank
    return rows, columns, rank, kernel


def he(factorization: Factorization, weight: Tensor) -> None:
    """Plain He: each factor is N(0, 2 / number of its inputs), as Y maps I -> R, T R K^2 -> R and X R -> O."""
    _, columns, rank, kernel = _fans(factorization)
    _fill(factorization, {"x": 2 / rank, "y": 2 / columns, "t": 2 / (rank * kernel)})


def he_fan_in(factorization: Factorization, weight: Tensor) -> None:
    """The authors' notebook: PyTorch's fan_in of tensors (R, O) and (R, I), so 2/O for X and 2/I for Y."""
    rows, columns, rank, kernel = _fans(factorization)
    _fill(factorization, {"x": 2 / rows, "y": 2 / columns, "t": 2 / (rank * kernel)})


def he_fan_out(factorization: Factorization, weight: Tensor) -> None:
    """Flower's baseline: PyTorch's fan_out of the same tensors, so 2/R for X and for Y."""
    _, _, rank, kernel = _fans(factorization)
    _fill(factorization, {"x": 2 / rank, "y": 2 / rank, "t": 2 / (rank * kernel)})


def variance(factorization: Factorization, weight: Tensor) -> None:
    """He's variance for the composed weight: all factors are N(0, s^2) with the s that gives W the dense std."""
    _fill(factorization, {"x": 1.0, "y": 1.0, "t": 1.0})
    _match_std(factorization, weight, scaled="xyt")


def variance_core(factorization: Factorization, weight: Tensor) -> None:
    """As `variance`, but the core has its own He variance, 2 / (R K^2); X and Y share the rest."""
    _, _, rank, kernel = _fans(factorization)
    _fill(factorization, {"x": 1.0, "y": 1.0, "t": 2 / (rank * kernel)})
    _match_std(factorization, weight, scaled="xy")


@torch.enable_grad()
def fitted(factorization: Factorization, weight: Tensor) -> None:
    """Factors of a W near the dense weight, for a warm start: least squares by L-BFGS, from those of `variance`.

    A product X Y^T could be the SVD's; for a Hadamard product no closed form is known, so all take the same way.
    """
    variance(factorization, weight)
    factors = list(factorization.parameters())
    target = weight.detach().to(factors[0])
    optimizer = torch.optim.LBFGS(
        factors, max_iter=60, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def error() -> float:
        optimizer.zero_grad()
        share = _lost_share(factorization, target)
        share.backward()
        return float(share.detach())

    optimizer.step(error)
    optimizer.zero_grad()


def kept_share(factorization: Factorization, weight: Tensor) -> float:
    """1 - |W - W0|^2 / |W0|^2, the share of the dense weight W0 that the factors' W keeps."""
    with torch.no_grad():
        return 1 - float(_lost_share(factorization, weight.to(factorization())))


def _lost_share(factorization: Factorization, weight: Tensor) -> Tensor:
    return (factorization() - weight).square().sum() / weight.square().sum()


def _match_std(factorization: Factorization, weight: Tensor, scaled: str) -> None:
    """Scale all factors of the kinds `scaled` by one number until the composed weight has the std of `weight`.

    Without a non-linearity W is proportional to a power of that number, so one step is exact; with tanh it takes a few.

    Raises:
        ValueError: the dense weight is constant, so it has no scale to keep, or larger than a tanh can be.
    """
    target = float(weight.std())
    if not target > 0:
        raise ValueError(f"a dense weight of std {target} has no variance to keep: initialise the layer first")
    with torch.no_grad():
        branches = factorization.branches()
        factors = [[factor for kind, factor in branch.items() if kind in scaled] for branch in branches]
        for branch, own, std in zip(branches, factors, factorization.branch_stds(target), strict=True):
            _scale(own, std / float(product(**branch).std()))
        for _ in range(30):
            ratio = target / float(factorization().std())
            if abs(ratio - 1) < 1e-4:
                break
            _scale([factor for own in factors for factor in own], ratio)
        else:
            if not abs(ratio - 1) < 0.01:
                raise ValueError(f"a dense weight of std {target:g} is too large for a product of tanh, each below 1")


def _scale(factors: Sequence[Tensor], ratio: float) -> None:
    """Multiply the product of `factors` by `ratio`, and each factor by the same number."""
    for factor in factors:
        factor.mul_(ratio ** (1 / len(factors)))


@torch.enable_grad()
def mean_step(factorization: Factorization) -> float:
    """How far one SGD step on the factors moves W, as a share of dense's step along the same gradient.

    It is the mean over all gradients, trace(D D^T) / number of weights for the derivative D of W by all factors, from
    products with random vectors (Hutchinson 1989), which are the same in every call: within about 3 %.
    """
    generator, total = torch.Generator().manual_seed(0), 0.0
    factors = list(factorization.parameters())
    weight = factorization.refold(factorization.compose(factorization.factors))
    number = 4 + 2 * 10**5 // weight.numel()
    for _ in range(number):
        vector = torch.randn(weight.shape, generator=generator).to(weight)
        gradients = torch.autograd.grad(weight, factors, vector, retain_graph=True)
        total += sum(float(gradient.float().square().sum()) for gradient in gradients)  # float16 would overflow
    return total / (number * weight.numel())


INITIALIZATIONS: dict[str, Initialization] = {
    function.__name__: function for function in (variance, variance_core, he, he_fan_in, he_fan_out, fitted)
}
