"""Every random choice as a pure function of (seed, round, client, purpose).

No generator state is kept anywhere, so a resumed run, another executor or another order of clients draws the same.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np


def derive_seed(seed: int, round_index: int, client: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of one client in one round; independent streams for different arguments."""
    sequence = np.random.SeedSequence([seed, round_index, client, crc32(purpose.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def seed_of_weights(seed: int) -> int:
    """What seeds torch's generator, which takes 32 bits, for the initial weights.

    The weights of a longer seed, which may be a secret, must not depend on its low bits alone: whoever tried these
    until the weights fit would know half of the seed. So they depend on a hash of all of it.
    """
    return seed if seed < 2**32 else derive_seed(seed, 0, 0, "initial weights")


def substream(seed: int, purpose: str, epoch: int = 0) -> int:
    """A 63-bit seed for one purpose of a task in one local epoch; `seed` is the task's, of its round and client."""
    return derive_seed(seed, epoch, 0, purpose)


def cohort(seed: int, round_index: int, num_clients: int, clients_per_round: int) -> list[int]:
    """The clients of a round: `clients_per_round` of `num_clients`, uniformly without replacement, sorted."""
    generator = np.random.default_rng(derive_seed(seed, round_index, 0, "cohort"))
    return sorted(generator.choice(num_clients, clients_per_round, replace=False).tolist())


def drawn_groups(seed: int, num_clients: int, shares: Sequence[float]) -> list[int]:
    """The group of each client, for the whole run: of a random order the first share, then the next, to whole numbers.

    Args:
        shares: of the clients in each group; their sum is 1.
    """
    ends = [*(round(end * num_clients) for end in np.cumsum(shares)[:-1]), num_clients]  # shares are rounded
    order = np.random.default_rng(derive_seed(seed, 0, 0, "groups")).permutation(num_clients)
    places = np.empty(num_clients, dtype=int)
    places[order] = np.arange(num_clients)
    return np.searchsorted(ends, places, side="right").tolist()
