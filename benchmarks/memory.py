"""Memory of a run during its rounds: `python benchmarks/memory.py federation.num_clients=10000 algorithm=scaffold ...`.

It starts src/train.py with the given arguments and reads the process's resident memory while it runs. With
`executor._target_=untrained.Untrained` clients do not train (untrained.py), so that a thousand VGG16s take minutes on a
CPU.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from fedpara.runs import CLIENTS, Run


def resident_mb(process_id: int) -> float:
    """Anonymous resident memory in 10^6 bytes, without mapped files; 0 if the process has ended."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return next((int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("RssAnon")), 0.0)


def main(arguments: list[str]) -> None:
    """Print the memory at each tenth of the rounds, and the largest at any time."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        command = [sys.executable, str(ROOT / "src/train.py"), *arguments, "logger=none", f"hydra.run.dir={folder}"]
        paths = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": paths})
        seen: dict[int, float] = {}
        largest = 0.0
        while process.poll() is None:
            time.sleep(0.02)
            rounds = len(Run(folder).rows)
            now = resident_mb(process.pid)
            largest = max(largest, now)
            if rounds > 0 and now:
                seen.setdefault(rounds, now)
        step = max(1, len(seen) // 10)
        for number in sorted(seen)[step - 1 :: step]:
            print(f"round {number}: {seen[number]:.0f} MB")
        files = [path.stat().st_size for path in (folder / CLIENTS).rglob("*.safetensors")]
        print(f"at most: {largest:.0f} MB")
        print(f"on disk: {len(files)} states of clients, {sum(files) / 1e6:.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
