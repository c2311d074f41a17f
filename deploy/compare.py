"""Compares a deployed run with its simulation, and its bytes on the socket with the counted ones."""

import json
import threading
from pathlib import Path

from safetensors.torch import load_file

from fedpara.runs import CHECKPOINT, PARTICIPANTS, Run, read_rows
from relay import CountingRelay


class Meter:
    """Reads the relay's counters whenever a round's row appears in metrics.csv.

    Attributes:
        readings: bytes up and down so far, at the start and after each round.
    """

    def __init__(self, relay: CountingRelay, path: Path) -> None:
        self.relay, self.path = relay, path
        self.readings = [self._now()]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _now(self) -> tuple[int, int]:
        return self.relay.up_bytes, self.relay.down_bytes

    def _watch(self) -> None:
        while not self._stopped.wait(0.02):
            if len(read_rows(self.path)) >= len(self.readings):
                self.readings.append(self._now())

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def show(deployed: Path, simulated: Path, readings: list[tuple[int, int]]) -> float:
    """Print both runs, round by round; returns the largest difference between their parameters.

    Args:
        readings: the readings of a `Meter`.
    """
    lines = (deployed / PARTICIPANTS).read_text().splitlines()
    pairs = zip(Run(deployed).rows, Run(simulated).rows, strict=True)
    print("\nround | accuracy: deployed, simulated | bytes up: counted, socket | down: counted, to test, socket | s")
    totals = [0, 0, 0, 0]
    for n, (own, other) in enumerate(pairs):
        up, down = (readings[n + 1][way] - readings[n][way] for way in (0, 1))
        counted_up, counted_down = int(own["comm/up_bytes"]), int(own["comm/down_bytes"])
        tests = json.loads(lines[n])["test_bytes"]
        sent = counted_down + tests
        totals = [a + b for a, b in zip(totals, (counted_up, up, sent, down), strict=True)]
        print(
            f"{n + 1:5} | {_accuracies(own)}, {_accuracies(other)} | {counted_up:,}, {up:,} ({_over(up, counted_up)})",
            f"| {counted_down:,}, {tests:,}, {down:,} ({_over(down, sent)}) | {own['time/round_s']:.1f}",
        )
    print(f"  all | up {_over(totals[1], totals[0])}, down {_over(totals[3], totals[2])} more than counted")
    difference = largest_difference(deployed, simulated)
    print(f"largest difference of any value in the servers' states: {difference:g}")
    return difference


def _accuracies(row: dict[str, float]) -> str:
    """Accuracy of the global model, and the mean of the clients' own models if they were tested."""
    return " ".join(f"{row[name]:.6f}" for name in ("test/acc", "personal/acc_mean") if name in row)


def _over(measured: int, counted: int) -> str:
    return f"+{100 * (measured / counted - 1):.1f} %" if counted else f"+{measured:,} B"


def largest_difference(deployed: Path, simulated: Path) -> float:
    """The largest difference of any value in the two servers' states."""
    one, other = (load_file(folder / CHECKPOINT) for folder in (deployed, simulated))
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
