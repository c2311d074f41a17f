"""Every random choice as a pure function of (seed, round, client, purpose).

No generator state is kept anywhere, so a resumed run, another executor or another order of clients draws the same.
"""

from zlib import crc32

import numpy as np


def derive_seed(seed: int, round_index: int, client: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of one client in one round; independent streams for different arguments."""
    sequence = np.random.SeedSequence([seed, round_index, client, crc32(purpose.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def substream(seed: int, purpose: str, epoch: int = 0) -> int:
    """A 63-bit seed for one purpose of a task in one local epoch; `seed` is the task's, of its round and client."""
    return derive_seed(seed, epoch, 0, purpose)


def cohort(seed: int, round_index: int, num_clients: int, clients_per_round: int) -> list[int]:
    """The clients of a round: `clients_per_round` of `num_clients`, uniformly without replacement, sorted."""
    generator = np.random.default_rng(derive_seed(seed, round_index, 0, "cohort"))
    return sorted(generator.choice(num_clients, clients_per_round, replace=False).tolist())
