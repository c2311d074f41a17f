"""Who uses the processors, read off /proc: a round beside which others computed is no measurement."""

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class ForeignLoad:
    """Cores that other processes than `own` and this one used, on average, since this object was made.

    Args:
        own: a process; its descendants count as it does.
    """

    def __init__(self, own: int) -> None:
        self.own = own
        self._start = self._foreign_seconds(), time.perf_counter()

    def cores(self) -> float:
        """Cores from then to now."""
        seconds, start = self._start
        return max(0.0, self._foreign_seconds() - seconds) / (time.perf_counter() - start)

    def _foreign_seconds(self) -> float:
        processes = _processes()
        # of this process its own time alone: the variants that wait are its children, and foreign to the one at work
        own = [p for p in processes if p == os.getpid() or descends(p, self.own, processes)]
        return _busy_seconds() - sum(processes[process][1] for process in own)


def descends(process: int, ancestor: int, processes: dict[int, tuple[int, float]]) -> bool:
    """Whether the one process was started by the other, or by one that it started; of each its parent is given."""
    while process in processes and process != ancestor:
        process = processes[process][0]
    return process == ancestor


def _busy_seconds() -> float:
    """All processors, all processes, since the machine started; what the host of a virtual machine took included."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, interrupts, soft, stolen = fields
    return (user + nice + system + interrupts + soft + stolen) / TICKS


def _processes() -> dict[int, tuple[int, float]]:
    """Of every process its parent and its seconds, those of its ended children included."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15])) / TICKS
    return found
