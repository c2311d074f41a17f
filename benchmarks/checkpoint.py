"""Seconds a checkpoint takes: `python benchmarks/checkpoint.py experiment=fedpara_cifar100 algorithm=scaffold`.

Builds the federation of the arguments, gives a round's clients something to keep, as training would, and writes.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))


def main(arguments: list[str], repeats: int = 10) -> None:
    """Median and largest time over `repeats` rounds' checkpoints, and their bytes."""
    from fedpara.app.build import build
    from fedpara.app.composition import compose
    from fedpara.callbacks import Checkpoint

    _, federation = build(compose(arguments))
    memory = {name: torch.randn_like(tensor) for name, tensor in federation.server.get("control", {}).items()}
    personal = federation.split.personal_part(federation.executor.initial_state())
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Checkpoint(Path(temporary))
        checkpoint.on_fit_start(federation)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            for client in range(federation.clients_per_round):
                if memory:
                    federation.memories[client] = memory
                if personal:
                    federation.personal[client] = personal
            checkpoint._write(federation)
            seconds.append(time.perf_counter() - start)
        num_bytes = sum(path.stat().st_size for path in Path(temporary).rglob("*.safetensors"))
    print(f"median {sorted(seconds)[repeats // 2]:.2f} s, largest {max(seconds):.2f} s, {num_bytes / 1e6:.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
