"""Seeds of torch's generator, which reads 32 bits of them."""

import pytest
import torch

from fedpara.sampling import drawn_groups, seed_of_weights


def drawn(seed):
    return torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("seed", [0x123456789ABCDEF0, 2**32, 2**63 - 1])
def test_the_weights_of_a_long_seed_depend_on_all_of_it(seed):
    assert drawn(seed) == drawn(seed % 2**32)
    assert drawn(seed_of_weights(seed)) != drawn(seed)
    assert drawn(seed_of_weights(seed)) != drawn(seed_of_weights(seed ^ 2**62))


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_those_of_a_short_seed_are_the_seeds_own(seed):
    assert seed_of_weights(seed) == seed


def test_shares_that_are_rounded_leave_nobody_without_a_group():
    assert set(drawn_groups(0, 2_000_000, [0.3333332] * 3)) == {0, 1, 2}
