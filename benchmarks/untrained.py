"""An executor without training, for benchmarks of what is around it: `executor._target_=untrained.Untrained`."""

from collections.abc import Iterable, Iterator

import torch

from fedpara.execution import ClientTask, LocalResult, SerialExecutor


class Untrained(SerialExecutor):
    """Every client returns what it was given, each value a random little off: of a VGG16 in a tenth of a second."""

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult]:
        """One result after the other; everything but the training is as ever."""
        for task in tasks:
            generator = torch.Generator().manual_seed(task.seed)
            state = {name: t + 1e-3 * torch.randn(t.shape, generator=generator) for name, t in task.state.items()}
            yield LocalResult(task.client, state, self.datamodule.num_examples(task.client), 1, 0.1, 0.0, 0.0)
