"""The rules of a CUDA graph on a CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """The rules of a CUDA graph on a CPU: operators on memory, recorded; a replay runs no Python.

    An operator for which a GPU and the host wait for each other is an error.
    """

    waiting = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        assert operator not in self.waiting, f"{operator} waits"
        result = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, result))
        return result

    def replay(self):
        with torch._C._AutoDispatchBelowAutograd(), torch.autocast("cpu", enabled=False):
            for operator, args, kwargs, result in self.calls:
                for there, new in zip(tree_leaves(result), tree_leaves(operator(*args, **kwargs)), strict=True):
                    if isinstance(new, torch.Tensor) and new.data_ptr() != there.data_ptr():
                        there.copy_(new)
