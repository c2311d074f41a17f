"""Lightning callbacks of one client's local training."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fedpara.algorithms.base import Correction
from fedpara.data.examples import Batch
from fedpara.nn import Factorization, Hadamard, PersonalHadamard, factorizations
from fedpara.nn.jacobian import Watch
from fedpara.state import State

Memory = dict[tuple[str, torch.Size], Tensor]


class LocalRecord(Callback):
    """Counts the applied steps and sums the training loss, without any logger.

    Attributes:
        num_steps: optimizer steps, without those that the fp16 scaler skipped.
        learning_rate_sum: sum of their learning rates.
        num_examples: examples seen, in all epochs together.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.learning_rate_sum = 0.0
        self.num_examples = 0
        self._loss: Tensor | float = 0.0

    @property
    def mean_loss(self) -> float:
        """Mean training loss per example, in nats."""
        return float(self._loss) / max(1, self.num_examples)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the fresh optimizer; a captured one reports its steps itself."""
        if not getattr(pl_module, "capture", None):
            optimizer = trainer.optimizers[0]
            optimizer.register_step_post_hook(lambda *_: self.count(optimizer.param_groups[0]["lr"]))

    def count(self, learning_rate: float) -> None:
        """Count one step."""
        self.num_steps += 1
        self.learning_rate_sum += learning_rate

    def add(self, loss: Tensor, size: int, divided_by: int = 1) -> None:
        """Add the mean loss of a batch of `size` examples on its device, so that a step needs no synchronisation."""
        self.num_examples += size
        self._loss = self._loss + loss.detach().float() * (size * divided_by)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int
    ) -> None:
        """Add a batch, whose loss Lightning has divided for accumulation; whole epochs add theirs themselves."""
        if isinstance(outputs, Mapping) and "loss" in outputs:
            self.add(outputs["loss"], len(batch[1]), trainer.accumulate_grad_batches)


class GradientCorrection(Callback):
    """Adds an algorithm's `Correction` to the gradients, after they are unscaled and before they are clipped.

    Attributes:
        correction: the current client's; set it before a fit.
    """

    def __init__(self) -> None:
        self.correction = Correction()
        self._anchor: State = {}
        self._offset: State = {}
        self._trained: State = {}
        self._memory: tuple[Memory, Memory, Memory] = {}, {}, {}

    @property
    def variant(self) -> tuple[float, frozenset[str], frozenset[str], frozenset[str]]:
        """The parts of the correction that change the step's operations, without the values of its tensors."""
        given = self.correction
        return given.proximal, frozenset(given.anchor), frozenset(given.offset), frozenset(given.trained)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the correction to the module's device, into the same memory as before, as a captured step reads it."""
        given = self.correction.anchor, self.correction.offset, self.correction.trained
        self._anchor, self._offset, self._trained = map(partial(_placed, pl_module.device), given, self._memory)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """grad += proximal * (w - anchor) + offset, times what is trained."""
        if not (self.correction.proximal or self._offset or self._trained):
            return
        network = pl_module.network
        assert isinstance(network, torch.nn.Module)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if not parameter.requires_grad:  # with a gradient, even a zero one, weight decay would change it
                    continue
                if parameter.grad is None:  # not in this step's graph, but an algorithm may still move it
                    parameter.grad = torch.zeros_like(parameter)
                if self.correction.proximal and name in self._anchor:
                    parameter.grad.add_(parameter - self._anchor[name], alpha=self.correction.proximal)
                if name in self._offset:
                    parameter.grad.add_(self._offset[name])
                if name in self._trained:
                    parameter.grad.mul_(self._trained[name])


def _placed(device: torch.device, given: State, memory: Memory) -> State:
    """A copy of `given` in `memory`, which is never freed, because a later client may need the same shape."""
    placed = {}
    for name, tensor in given.items():
        if (key := (name, tensor.shape)) in memory:
            memory[key].copy_(tensor)
        else:
            memory[key] = tensor.to(device, copy=True)
        placed[name] = memory[key]
    return placed


class JacobianCorrection(Callback):
    """Adds lambda times the gradient of FedPara's regulariser (appendix B, eq. 9) before each optimizer step.

    It comes from the backward pass alone, whatever other callbacks do to the gradients before it. A frozen factor takes
    no step and gets no correction. Where a layer's gradients are scaled (`gradient_scale`), so is its correction: it is
    that of eta times the scale.

    Args:
        strength: lambda; 1 in the paper's experiments (Table 6), 10 in its ablation (Table 4).
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._watches: list[Watch] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch every weight that is a Hadamard product, pFedPara's too; the low-rank baseline has no correction."""
        kinds = (Hadamard, PersonalHadamard)
        self._watches = [Watch(made) for _, made in factorizations(pl_module) if isinstance(made, kinds)]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the correction; gradients are unscaled by now, but what the watches took is not."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        for watch in self._watches:
            factors = watch.factorization.parameters()
            rate = next((rates[factor] for factor in factors if factor.requires_grad), 0.0)  # of the layer's own group
            for name, correction in watch.correction(rate, scale).items():
                gradient = watch.factorization.get_parameter(name).grad
                assert gradient is not None
                gradient.add_(correction, alpha=self.strength * watch.factorization.gradient_scale)
            watch.clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching, because the next client trains on the same network."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching, and forget what a step left that raised, which would be added to the next client's first."""
        for watch in self._watches:
            watch.remove()
        self._watches = []


class FrobeniusDecay(Callback):
    """Adds l/2 |W|^2 of each composed weight to the loss (Khodak et al., ICLR 2021, "Frobenius decay").

    Where factors compose what is added to a weight that stays (fine-tuning, FedMUD), W is what they compose.

    Weight decay of the factors would shrink them and not W. The gradient l W is added where the composed weight
    receives its own, so the factors get both in one backward pass: once a step, however often the step composes the
    weight. The reported loss is without it.

    It comes before `JacobianCorrection`, whose J_W is then that of the decayed loss, as the factors' gradients are.

    Args:
        strength: l.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._scaler: Any = None
        self._decayed: set[Factorization] = set()
        self._handles: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch every factorised weight."""
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        for _, factorization in factorizations(pl_module):
            self._handles.append(factorization.register_forward_hook(self._watch))

    def _watch(self, factorization: Factorization, _: object, weight: Tensor) -> None:
        if weight.requires_grad:
            weight.register_hook(partial(self._decay, factorization, weight.detach()))

    def _decay(self, factorization: Factorization, weight: Tensor, gradient: Tensor) -> Tensor:
        if factorization in self._decayed:
            return gradient
        self._decayed.add(factorization)
        scale = 1.0 if self._scaler is None else float(self._scaler.get_scale())
        return gradient.add(weight, alpha=self.strength * scale * factorization.gradient_scale)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The next step adds it again."""
        self._decayed.clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching, because the next client trains on the same network."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching."""
        self._decayed.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
