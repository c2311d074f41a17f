"""Memory of a run over its rounds: `python benchmarks/memory.py federation.num_clients=10000 algorithm=scaffold ...`.

Starts src/train.py with the arguments given and reads the process's resident memory while it goes on.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def resident_mb(process_id: int) -> float:
    """Anonymous resident memory in 10^6 bytes: the process's own, without mapped files."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("RssAnon"))


def main(arguments: list[str]) -> None:
    """One line for each tenth of the rounds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        command = [sys.executable, str(ROOT / "src/train.py"), *arguments, "logger=none", f"hydra.run.dir={folder}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        seen: dict[int, float] = {}
        while process.poll() is None:
            time.sleep(0.05)
            metrics = folder / "metrics.csv"
            rounds = len(metrics.read_bytes().splitlines()) - 1 if metrics.is_file() else 0
            if rounds > 0 and rounds not in seen and Path(f"/proc/{process.pid}/status").exists():
                seen[rounds] = resident_mb(process.pid)
        step = max(1, len(seen) // 10)
        for number in sorted(seen)[step - 1 :: step]:
            print(f"round {number}: {seen[number]:.0f} MB")
        files = [path.stat().st_size for path in (folder / "clients").rglob("*.safetensors")]
        print(f"on disk: {len(files)} states of clients, {sum(files) / 1e6:.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
