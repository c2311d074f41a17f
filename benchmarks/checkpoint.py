"""Time to write a checkpoint: `python benchmarks/checkpoint.py experiment=fedpara_cifar100 algorithm=scaffold`.

It builds the federation of the arguments, gives a round's clients random states to keep, and writes a checkpoint.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from fedpara.state import Layout, State


def main(arguments: list[str], repeats: int = 10) -> None:
    """Print the median and the largest time over the checkpoints of `repeats` rounds, and their bytes."""
    from fedpara.app.build import build
    from fedpara.app.composition import compose
    from fedpara.callbacks import Checkpoint
    from fedpara.federation import Kept

    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Checkpoint(Path(temporary))
        _, federation = build(compose(arguments), [checkpoint])
        store, layouts = federation.clients.store, federation.client_side.layouts
        assert store is not None  # simulated clients have one
        kept = Kept(_random(layouts.personal), _random(layouts.memory))
        checkpoint.on_fit_start(federation)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            for client in range(federation.clients_per_round):
                store.add(client, kept)
            store.keep(range(federation.clients_per_round))
            checkpoint.write(federation)
            seconds.append(time.perf_counter() - start)
        num_bytes = sum(path.stat().st_size for path in Path(temporary).rglob("*.safetensors"))
    print(f"median {sorted(seconds)[repeats // 2]:.2f} s, largest {max(seconds):.2f} s, {num_bytes / 1e6:.0f} MB")


def _random(layout: Layout) -> State:
    return {name: torch.randn(spec.shape).to(spec.dtype) for name, spec in layout.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
