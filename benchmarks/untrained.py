"""An executor that does not train, to measure everything around it: `executor._target_=untrained.Untrained`."""

from collections.abc import Iterable, Iterator

import torch

from fedpara.execution import ClientTask, LocalResult, SerialExecutor


class Untrained(SerialExecutor):
    """Every client returns its state with a little noise on each value, which takes 0.1 s for a VGG16."""

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult]:
        """Yield one result after the other; everything except the training is as usual."""
        for task in tasks:
            generator = torch.Generator().manual_seed(task.seed)
            state = {name: t + 1e-3 * torch.randn(t.shape, generator=generator) for name, t in task.state.items()}
            yield LocalResult(task.client, state, self.datamodule.num_examples(task.client), 1, 0.1, 0.0, 0.0)
