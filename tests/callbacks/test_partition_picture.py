"""What the picture of a partition shows."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from fedpara.callbacks.partition_picture import PartitionPicture, draw_partition


@pytest.mark.parametrize(("num_clients", "num_bars"), [(3, 3), (1_000, 1_000), (2_500, 834)])
def test_bars_show_every_client_or_the_largest_of_those_that_share_one(num_clients, num_bars):
    counts = np.random.default_rng(0).integers(1, 50, (num_clients, 2))
    bars, classes, _ = draw_partition(counts).axes
    (patch,) = [one for one in bars.patches if isinstance(one, StepPatch)]
    heights, edges, _ = patch.get_data()
    assert len(heights) == num_bars
    assert (edges[0], edges[-1]) == (-0.5, num_clients - 0.5)
    inside = [counts.sum(1)[int(low + 0.5) : int(high + 0.5)] for low, high in pairwise(edges)]
    assert heights.tolist() == [part.max() for part in inside]
    assert sum(map(len, inside)) == num_clients
    assert np.array_equal(classes.images[0].get_array(), counts.T)


def test_a_picture_that_is_interrupted_is_drawn_by_the_resumed_run(tmp_path, monkeypatch):
    data = SimpleNamespace(num_classes=None, parts=SimpleNamespace(sizes=np.array([3, 5])))
    federation = SimpleNamespace(executor=SimpleNamespace(datamodule=data))
    picture = PartitionPicture(tmp_path)
    save = Figure.savefig

    def killed(figure, target, **options):
        save(figure, target, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Figure, "savefig", killed)
        with pytest.raises(KeyboardInterrupt):
            picture.on_fit_start(federation)
    assert not list(tmp_path.iterdir())
    picture.on_fit_start(federation)
    assert [path.name for path in tmp_path.iterdir()] == ["partition.png"]
