"""Steps that are captured once as CUDA graphs and then replayed without the host.

Note [Replayed steps]
~~~~~~~~~~~~~~~~~~~~~
A CUDA graph repeats a step on the same memory, so everything that a step reads must stay where it was at the capture:

- The batch is copied into held tensors. Each shape of a batch, and each kind of step, has its own graph.
- The weights are the network's own; each client's state is copied into them.
- The optimizer is kept, because the graph uses the memory of its moments. To make it fresh, all moments are set to zero
  and the new learning rate is copied into the tensor that the step reads. This excludes three cases: SGD with
  dampening, whose first step differs (zeros are not a fresh start); optimizers that are not fused, which do not read
  the rate from a tensor; and classes other than `FUSED`, whose moments may start at other values (Adagrad's do).
- `GradientCorrection` copies the anchors and offsets of the corrections to the same memory as before.
- Random generators of the step's own are registered with the graph. They are kept and get a new seed for each client.

The first step of a kind is run directly, and the second one captured, because a capture takes some steps to warm up.
These change weights, moments and generators. All are copied before and restored after it, and moments that did not
exist before are set to zero. Torch's own random numbers come from a fork.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedpara.models.module import FUSED

Replay = Callable[[], Tensor]
# turns a step, and the generators that it uses besides torch's own, into a function that repeats it on the same memory
Capture = Callable[[Replay, Sequence[torch.Generator]], Replay]


class NotCaptured(RuntimeError):
    """A step cannot be captured in a graph, because it needs a value on the host; it can still be run directly."""


class Steps:
    """Takes the steps of a network's training; those that are repeated are captured and replayed.

    Args:
        step: takes the tensors of a batch, trains on it, and returns the loss without gradient.
        network: what is trained.
        capture: such as `CudaGraphs`; None: every step is run directly.
        generators: generators that the step uses besides torch's own.

    Attributes:
        rate: learning rate of the current optimizer.
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        network: nn.Module,
        capture: Capture | None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.capture, self.rate = capture, 0.0
        self._step, self._network, self._generators = step, network, generators
        self._seen: set[Hashable] = set()
        self._captured: dict[Hashable, tuple[Sequence[Tensor], Replay]] = {}
        self._kept: torch.optim.Optimizer | None = None

    def optimizer(self, fresh: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The fresh optimizer; if steps are captured, the kept one, reset to the same state."""
        if fresh.defaults.get("dampening") or not fresh.defaults.get("fused") or type(fresh) not in FUSED:
            self.capture = None  # see the three excluded cases in Note [Replayed steps]
        self.rate = fresh.param_groups[0]["lr"]
        if self.capture is None:
            return fresh
        if self._kept is None:
            self._kept = fresh
            for group in fresh.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
                group |= {"capturable": True} if "capturable" in group else {}  # Adam needs this flag
            return fresh
        for kept, new in zip(self._kept.param_groups, fresh.param_groups, strict=True):
            kept["lr"].fill_(new["lr"])
        for tensor in self._moments():
            tensor.zero_()
        return self._kept

    def stop_capturing(self) -> None:
        """Run every further step directly, and free the graphs."""
        self.capture = self._kept = None
        self._captured.clear()

    def __call__(self, kind: Hashable, batch: Sequence[Tensor]) -> Tensor:
        """Take a step on a batch.

        Args:
            kind: everything that decides which operations the step has, besides the shapes of the batch.
        """
        if self.capture is None:
            return self._step(*batch)
        key = kind, *(tensor.shape for tensor in batch)
        if key not in self._seen:
            self._seen.add(key)
            return self._step(*batch)
        if key not in self._captured:
            self._captured[key] = self._capture(self.capture, [tensor.clone() for tensor in batch])
        held, replay = self._captured[key]
        for here, there in zip(held, batch, strict=True):
            here.copy_(there)
        return replay()

    def _capture(self, capture: Capture, held: Sequence[Tensor]) -> tuple[Sequence[Tensor], Replay]:
        """Capture the step on held tensors, and undo the steps of the warm-up."""
        kept = *self._network.parameters(), *self._network.buffers()  # also buffers that no state contains
        state = [*(tensor.detach() for tensor in kept), *self._moments()]
        before, drawn = [tensor.clone() for tensor in state], [one.get_state() for one in self._generators]
        device = held[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            replay = capture(lambda: self._step(*held), self._generators)
        known = {tensor.data_ptr() for tensor in state}
        for moment in self._moments():
            if moment.data_ptr() not in known:
                moment.zero_()
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        for generator, value in zip(self._generators, drawn, strict=True):
            generator.set_state(value)
        return held, replay

    def _moments(self) -> Iterator[Tensor]:
        """The tensors that the kept optimizer remembers; zeros are a fresh start."""
        assert self._kept is not None
        for state in self._kept.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


class CudaGraphs:
    """Captures a step after a warm-up, as in PyTorch's notes on CUDA graphs, and returns a function to replay it.

    Clients of unequal size have last batches of many sizes, each with its own graph. Only one graph is replayed at a
    time, and none reads what another one left, so all share the memory of the largest.
    """

    def __init__(self, warm_up: int = 3) -> None:
        self.warm_up = warm_up
        # one stream for warm-ups and captures: torch's own capture stream belongs to the device of its first use
        self._aside: torch.cuda.Stream | None = None
        # a handle, and not one of the graphs, which would keep the memory alive after all graphs are freed
        self._pool: Any = None

    def __call__(self, step: Replay, generators: Sequence[torch.Generator] = ()) -> Replay:
        """Capture the step on the current device.

        Raises:
            NotCaptured: the step waits for the device; this is checked first, because a failed capture is final.
        """
        self._aside = self._aside or torch.cuda.Stream()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            for _ in range(self.warm_up):
                step()
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            except torch.OutOfMemoryError:  # fails this client alone; the next ones may fit
                raise
            except RuntimeError as error:
                raise NotCaptured(str(error)) from error
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._aside):
            loss = step()

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay
