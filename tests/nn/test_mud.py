"""Updates in factors: the formulas by hand, what the mean of factors gives, sizes, and a network that has them."""

import copy
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpara.models import VGG
from fedpara.nn import MUD, factorize, merge
from fedpara.nn.frozen import constants
from fedpara.nn.initialization import mean_step
from fedpara.nn.mud import KroneckerUpdate, MatrixUpdate, kronecker_size, updates
from fedpara.state import tensors

FORMS = [{}, {"kronecker": True}, {"aad": False}, {"kronecker": True, "aad": False}]


def test_low_rank_by_hand():
    """U~ V^T + U V~^T = [1 2]^T [3 4 5] + [1 -1]^T [2 0 1]."""
    update = MatrixUpdate((2, 3), rank=1)
    given = {"fixed_u": [[1], [2]], "v": [[3], [4], [5]], "u": [[1], [-1]], "fixed_v": [[2], [0], [1]]}
    given = {name: torch.tensor(values) for name, values in given.items()}
    assert update.compose(given).tolist() == [[5, 4, 6], [4, 8, 9]]
    assert MatrixUpdate((2, 3), rank=1, aad=False).compose(given).tolist() == [[3, 4, 5], [-3, -4, -5]]


def test_kronecker_blocks_by_hand():
    """[[1 2] [0 -1]] (x) [[1 0] [3 1]] has the rows 1 0 2 0 | 3 1 6 2 | 0 0 -1 0 | 0 0 -3 -1; W takes nine values."""
    update = KroneckerUpdate((3, 3), blocks=1, side=2, aad=False)
    given = {"u": torch.tensor([[[1, 2], [0, -1]]]), "v": torch.tensor([[[1, 0], [3, 1]]])}
    assert update.compose(given).tolist() == [[1, 0, 2], [0, 3, 1], [6, 2, 0]]


def test_kronecker_blocks_stand_side_by_side():
    update = KroneckerUpdate((4, 2, 2, 2), blocks=3, side=2)
    given = {name: torch.randn(3, 2, 2) for name in ("u", "v", "fixed_u", "fixed_v")}
    blocks = [
        torch.kron(given["fixed_u"][i], given["v"][i]) + torch.kron(given["u"][i], given["fixed_v"][i])
        for i in range(3)
    ]
    expected = torch.cat([block.flatten() for block in blocks])[:32].view(4, 8)
    torch.testing.assert_close(update.compose(given), expected)
    assert update.refold(expected).shape == (4, 2, 2, 2)


@given(
    seed=st.integers(0, 2**32),
    weights=st.lists(st.integers(1, 50), min_size=2, max_size=5),
    form=st.sampled_from(FORMS),
)
def test_the_mean_of_factors_gives_the_mean_of_updates_with_aad_alone(seed, weights, form):
    update = MUD(ratio=0.4, **form)("layer", torch.empty(6, 5, 2, 2))
    start = {name: tensor.double() for name, tensor in update.drawn(seed).items()}
    generator = torch.Generator().manual_seed(seed)
    moved = lambda x: x + torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    clients = [start | {name: moved(start[name]) for name in ("u", "v")} for _ in weights]
    shares = [weight / sum(weights) for weight in weights]
    mean = start | {name: sum(s * c[name] for s, c in zip(shares, clients, strict=True)) for name in ("u", "v")}
    of_updates = sum(s * update.compose(c) for s, c in zip(shares, clients, strict=True))
    assert torch.allclose(update.compose(mean), of_updates, rtol=1e-9, atol=1e-9) == update.aad


@pytest.mark.parametrize("form", FORMS)
def test_what_is_drawn_composes_zero_and_depends_on_the_seed(form):
    update = MUD(ratio=0.3, a=0.5, **form)("layer", torch.empty(32, 16, 3, 3))
    one, again, other = update.drawn(1), update.drawn(1), update.drawn(2)
    random = {"fixed_u", "fixed_v"} if update.aad else {"u"}
    assert {name for name, tensor in one.items() if tensor.any()} == random
    for name in random:
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])
        assert 0.45 < float(one[name].abs().max()) <= 0.5
        assert abs(float(one[name].mean())) < 0.1
    assert not update.compose(one).any()
    assert not update().any()
    assert not update.aad or not torch.equal(one["fixed_u"].flatten()[:9], one["fixed_v"].flatten()[:9])


@pytest.mark.parametrize(("shape", "ratio", "rank", "values"), [
    ((256, 784), 0.1, 20, 20_800),      # ceil(0.1 * 200,704 / 1,040); 1,040 values a rank
    ((64, 32, 3, 3), 0.1, 6, 2_112),    # O x (I K K) is 64 x 288: ceil(0.1 * 18,432 / 352)
    ((10, 256), 0.001, 1, 266),         # at least 1
])  # fmt: skip
def test_ranks_by_hand(shape, ratio, rank, values):
    update = MUD(ratio=ratio)("layer", torch.empty(shape))
    assert (update.rank, sum(p.numel() for p in update.parameters())) == (rank, values)


@pytest.mark.parametrize(("shape", "ratio", "blocks", "side"), [
    ((512, 512, 3, 3), 1 / 32, 576, 8),  # the authors' ratio is met exactly: 2 * 576 * 64 / 2,359,296
    ((64, 64), 0.125, 16, 4),            # k = ceil(0.125^2 * 4,096 / 4), s = 256^(1/4)
    ((256, 784), 0.1, 322, 5),           # s = ceil(400^(1/4)); the paper's 502 blocks of 625 values would be cut at 322
])  # fmt: skip
def test_blocks_by_hand(shape, ratio, blocks, side):
    assert kronecker_size(prod(shape), ratio) == (blocks, side)
    update = MUD(ratio=ratio, kronecker=True)("layer", torch.empty(shape))
    assert sum(p.numel() for p in update.parameters()) == 2 * blocks * side**2


@given(
    shape=st.sampled_from([(256, 784), (10, 256), (64, 32, 3, 3), (33, 7, 5, 5), (128, 128)]),
    ratio=st.floats(0.02, 0.5),
)
def test_sizes_come_to_the_ratio(shape, ratio):
    number, rows = prod(shape), shape[0]
    update = MUD(ratio=ratio)("layer", torch.empty(shape))
    values = sum(p.numel() for p in update.parameters())
    assert 0 <= values - ratio * number <= rows + number // rows + 1e-6
    blocks, side = kronecker_size(number, ratio)
    assert (blocks - 1) * side**4 < number <= blocks * side**4  # no block is cut off whole
    assert 2 * (blocks - 1) * side**2 < ratio * number
    assert 2 / side**2 > ratio / (1 + (ratio / 2) ** 0.5) ** 2 - ratio / 9  # rounding the side up, and k


def test_a_step_moves_the_weight_as_far_as_the_guide_says():
    """By AAD 2 r a^2 / 3 of the dense step, with Kronecker blocks 2 a^2 / 3."""
    assert mean_step(MatrixUpdate((64, 96), rank=12, a=0.3)) == pytest.approx(2 * 12 * 0.09 / 3, rel=0.1)
    assert mean_step(KroneckerUpdate((64, 96), *kronecker_size(64 * 96, 0.125), a=1.2)) == pytest.approx(0.96, rel=0.1)


@pytest.mark.parametrize("form", FORMS)
def test_a_network_starts_as_it_was_trains_its_factors_alone_and_merges(form):
    torch.manual_seed(0)
    dense = VGG([[16], [16, 32]], hidden=[64], num_classes=10, dropout=0.0)
    network = factorize(copy.deepcopy(dense), MUD(ratio=0.3, **form), ["classifier.3"])
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(network(images), dense(images))
    weights = {name: tensor.clone() for name, tensor in tensors(network).items() if name.endswith(".1.weight")}
    assert len(weights) == len(dict(updates(network))) == 4
    assert not constants(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), torch.arange(4)).backward()
        optimizer.step()
    state = tensors(network)
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    assert all(own.u.any() and own.v.any() for _, own in updates(network))
    outputs = network(images)
    merged = merge(network)
    assert torch.equal(merged(images), outputs)
    assert not torch.equal(outputs, dense(images))
    assert merged.state_dict().keys() == dense.state_dict().keys()


def test_what_is_not_served():
    assert MUD(ratio=0.9)("layer", torch.empty(2, 3)) is None  # its factors would have 10 values
    assert MUD()("layer", torch.empty(0, 3)) is None
    with pytest.raises(ValueError, match=r"delta=True: must be False with MUD\(\), which has no factors"):
        factorize(nn.Sequential(nn.Linear(20, 20)), MUD(), delta=True)
    with pytest.raises(ValueError, match="ratio"):
        MUD(ratio=1.0)
