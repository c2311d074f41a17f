"""A picture of the partition, drawn before the first round."""

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from pydantic import DirectoryPath, validate_call

from fedpara.data import FederatedDataModule
from fedpara.federation import Federation, FederationCallback
from fedpara.files import write_atomically
from fedpara.runs import PARTITION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PartitionPicture(FederationCallback):
    """Writes `partition.png`: the training examples of every client, by class if there are classes.

    Args:
        folder: the run folder.
    """

    @validate_call
    def __init__(self, folder: DirectoryPath) -> None:
        self.path = folder / PARTITION

    def on_fit_start(self, federation: Federation) -> None:
        """Draw the picture, unless a resumed run has it already."""
        if self.path.is_file():
            return
        data = federation.executor.datamodule
        stream = io.BytesIO()
        draw_partition(_counts(data)).savefig(stream, format="png", dpi=120)
        write_atomically(self.path, stream.getvalue(), durable=False)


def _counts(data: FederatedDataModule) -> np.ndarray:
    """(clients, classes) numbers of examples; one column if the labels are not classes."""
    if data.num_classes is None:
        return data.parts.sizes[:, None]
    shape = len(data.parts), data.num_classes
    cells = data.parts.clients * data.num_classes + data.examples[0].labels[data.parts.indices].numpy()
    return np.bincount(cells, minlength=math.prod(shape)).reshape(shape)


def draw_partition(counts: np.ndarray) -> "Figure":
    """A figure of each client's examples: in all (bars) and by class (colour); with a single class, only bars.

    Args:
        counts: (clients, classes) numbers of examples.
    """
    from matplotlib.figure import Figure  # takes half a second to import; only runs that draw need it

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    several = counts.shape[1] > 1
    bars, *rest = figure.subplots(1 + several, 1, sharex=True, squeeze=False, height_ratios=(1, 3)[: 1 + several])[:, 0]
    starts = np.arange(0, len(counts), -(-len(counts) // 1_000))  # one bar for several clients where a pixel has more
    tallest = np.maximum.reduceat(counts.sum(1), starts)
    bars.stairs(tallest, np.append(starts, len(counts)) - 0.5, fill=True, color="#30638e")
    bars.set_ylabel("examples")
    bars.spines[["top", "right"]].set_visible(False)
    if not several:
        bars.set_xlabel("client")
        return figure
    (classes,) = rest
    image = classes.imshow(counts.T, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0)
    classes.set_ylabel("class")
    classes.set_xlabel("client")
    classes.locator_params(integer=True)
    figure.colorbar(image, ax=classes, label="examples of a class", pad=0.01)
    return figure
