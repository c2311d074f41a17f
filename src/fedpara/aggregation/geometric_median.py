"""The geometric median, by the smoothed Weiszfeld algorithm (RFA: Pillutla, Kakade, Harchaoui, IEEE TSP 2022, Alg. 2).

It minimises the mean distance to the uploads. Each step leads to their mean with the weights 1 / max(nu, distance).
A step times the mean weight is the gradient. That is a mean of directions, so a far upload counts as a near one.
"""

from collections.abc import Sequence
from functools import partial
from math import inf

import torch
from torch import Tensor

from fedpara.aggregation.rule import Keeping, distances_to, middle, reduced
from fedpara.state import State

SMOOTHING = 1e-6  # nu, of the median distance; the paper's is absolute, so closer uploads would just get their mean
STEPS, TOLERANCE = 100, 1e-6  # at most so many; it ends with a gradient this short; none is longer than 1


class GeometricMedian(Keeping):
    """The point with the least sum of distances to the uploads. It stands fewer than half of the uploads.

    It starts from the coordinate-wise median, which is not far off even if an attacker is. The paper starts from the
    mean and weighs clients by their examples, in three steps, each of which its clients take part in; here the server
    has the uploads, and goes on until the gradient vanishes.

    Args:
        memory_gb: the most that the kept uploads may take, in 10^9 bytes.

    Example:
        >>> from fedpara.algorithms import Upload
        >>> corners = ([0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0])  # the diagonals cross at (2, 2)
        >>> uploads = [Upload({"model": {"w": torch.tensor(w)}}, num_examples=1) for w in corners]
        >>> next(iter(GeometricMedian().bound_to(["w"]).replaced(uploads, known={}))).parts["model"]["w"]
        tensor([2., 2.])
    """

    def center(self, states: Sequence[State]) -> State:
        """The geometric median of all values together."""
        columns = {name: [state[name] for state in states] for name in states[0]}
        center = {name: reduced(tensors, middle, torch.float64) for name, tensors in columns.items()}
        for _ in range(STEPS):
            distances = distances_to(center, states)
            scale = distances.median()
            if not 0 < scale < inf:  # at 0 half of the uploads are at the center, and no others outweigh them
                break
            weights = 1 / distances.clamp(min=SMOOTHING * scale)
            mean = partial(_mean, weights=weights / weights.sum())
            moved = {name: reduced(tensors, mean, torch.float64) for name, tensors in columns.items()}
            gradient = distances_to(moved, [center]) * weights.mean()
            center = moved
            if gradient <= TOLERANCE:
                break
        return {name: value.to(states[0][name].dtype) for name, value in center.items()}


def _mean(block: Tensor, weights: Tensor) -> Tensor:
    return weights @ block.double()
