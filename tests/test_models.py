"""The networks at their start."""

import pytest
import torch

from fedpara.models import VGG
from fedpara.nn import Dense, FedPara, factorize


@pytest.mark.parametrize("recipe", [Dense(), FedPara(gamma=0.1)], ids=["dense", "fedpara"])
def test_vgg16_can_take_the_papers_first_steps(recipe):
    """SGD at 0.1 must lower the loss of a batch step by step; a start too hot throws VGG16 to chance, for good."""
    torch.manual_seed(0)
    network = VGG([[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3], [512, 512], 10)
    factorize(network, recipe, ["classifier.*"])
    images, labels = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.303, abs=0.02)
    assert losses[0] > losses[1] > losses[2]


def test_groups_must_divide_every_width():
    with pytest.raises(ValueError, match="groups=3: must divide every width of stages, not so for 4"):
        VGG([[6, 4]], [], 10, groups=3)
