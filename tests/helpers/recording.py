"""The rules of a CUDA graph on a CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """The rules of a CUDA graph on a CPU: operators on memory, recorded; a replay runs no Python.

    An operator for which a GPU and the host wait for each other is an error. So is one that draws from a generator that
    is neither torch's own nor among `generators`, those that are registered with the graph; None: all are.
    """

    waiting = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default

    def __init__(self, generators=None):
        super().__init__()
        self.calls, self.generators = [], generators

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        assert operator not in self.waiting, f"{operator} waits"
        drawn = (kwargs or {}).get("generator")
        if drawn is not None and self.generators is not None:
            states = [one.get_state() for one in self.generators]  # there is a new Python object of it here
            assert any(torch.equal(drawn.get_state(), state) for state in states), "its generator is not registered"
        result = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, result))
        return result

    def replay(self):
        with torch._C._AutoDispatchBelowAutograd(), torch.autocast("cpu", enabled=False):
            for operator, args, kwargs, result in self.calls:
                for there, new in zip(tree_leaves(result), tree_leaves(operator(*args, **kwargs)), strict=True):
                    if isinstance(new, torch.Tensor) and new.data_ptr() != there.data_ptr():
                        there.copy_(new)


class Rehearsed:
    """As `CudaGraphs`, on a CPU: steps to warm up, which must leave no trace, then the operators of one recorded."""

    def __init__(self):
        self.num_steps = 0

    def __call__(self, step, generators):
        self.num_steps += 1
        for _ in range(3):
            step()
        with Recording(generators) as recording:
            loss = step()

        def replay():
            recording.replay()
            return loss

        return replay
