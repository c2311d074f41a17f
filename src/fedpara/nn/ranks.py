"""Rank rules and factor sizes (FedPara, ICLR 2022, section 2 and Table 1).

A weight has shape (m, n) for a fully connected layer and (O, I, K1, K2) for a convolution. A *matrix* product
X Y^T treats a convolution as the matrix O x (I K1 K2) (the paper's "Proposition 1 way"); a *Tucker* product
T x1 X x2 Y keeps the kernel in a core of shape (R, R, K1, K2) (Proposition 3).
"""

from collections.abc import Callable, Sequence
from math import isqrt, log, prod

Shape = tuple[int, ...]
SizeOfRank = Callable[[int], int]


def matrix_size(shape: Shape, rank: int) -> int:
    """Values in X (m x R) and Y (n x R): R (m + n), with n = I K1 K2 for a convolution."""
    return rank * (shape[0] + prod(shape[1:]))


def tucker_size(shape: Shape, rank: int) -> int:
    """Values in X (O x R), Y (I x R) and the core T (R x R x K1 x K2): R (O + I + R K1 K2)."""
    return rank * (shape[0] + shape[1] + rank * prod(shape[2:]))


def largest_rank(size: SizeOfRank, budget: int) -> int:
    """The largest rank whose `size(rank)` does not exceed `budget`, at least 1; `size` must increase."""
    low, high = 1, 2
    while size(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    return low


def minimal_rank(rows: int, columns: int) -> int:
    """r_min = min(ceil(sqrt(m)), ceil(sqrt(n))): the least R for which R^2 does not bound the rank (Corollary 1)."""
    return isqrt(min(rows, columns) - 1) + 1


def hadamard_rank(rows: int, columns: int, num_weights: int, size: SizeOfRank, gamma: float) -> int:
    """R = (1 - gamma) r_min + gamma r_max, to the nearest integer (section 3.1; rounding fitted to Table 5).

    Args:
        rows, columns: sides of the matrix whose rank is not to be bounded: (m, n), or (O, I) for Proposition 3.
        num_weights: values in the dense weight; r_max is the largest rank whose factors do not outnumber them.
        size: number of values in all factors of the Hadamard product at a rank.
        gamma: 0 (fewest parameters) to 1 (as many as the dense weight).

    Returns:
        The rank, within 1 and min(rows, columns), beyond which a factor is wider than it is long (Prop. 3).
    """
    lowest, highest = minimal_rank(rows, columns), largest_rank(size, num_weights)
    return max(1, min(round((1 - gamma) * lowest + gamma * highest), rows, columns))


def ranks_within(budget: int, sizes: Sequence[SizeOfRank], lowest: Sequence[int], highest: Sequence[int]) -> list[int]:
    """The rank of each layer with the largest sum of log(rank) whose sizes fit one budget.

    From the lowest ranks on, the layer whose next rank adds most per value is raised. Sizes are convex in the rank and
    log is concave, so until the first layer no longer fits, each result is the best one of its own total. What is left
    is spent where it still fits.

    Args:
        budget: number of values in all layers together.
        sizes: for each layer the number of values at a rank, increasing and convex.
        lowest, highest: bounds of each layer's rank.

    Raises:
        ValueError: the lowest ranks do not fit.
    """
    ranks, rising = list(lowest), set(range(len(sizes)))
    left = budget - sum(size(rank) for size, rank in zip(sizes, ranks, strict=True))
    if left < 0:
        raise ValueError(f"{budget} values are {-left} too few for the lowest ranks")

    def cost(layer: int) -> int:
        return sizes[layer](ranks[layer] + 1) - sizes[layer](ranks[layer])

    while rising := {layer for layer in rising if ranks[layer] < highest[layer] and cost(layer) <= left}:
        best = max(sorted(rising), key=lambda layer: log(1 + 1 / ranks[layer]) / cost(layer))
        left -= cost(best)
        ranks[best] += 1
    return ranks
