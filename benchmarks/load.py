"""Processor use from /proc, because a round does not count if other processes were computing at the same time."""

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class ForeignLoad:
    """Average number of cores used by processes other than `own` and this one, since this object was made.

    Args:
        own: id of a process; its descendants count as part of it.
    """

    def __init__(self, own: int) -> None:
        self.own = own
        self._start = self._foreign_seconds(), time.perf_counter()

    def cores(self) -> float:
        """The number of cores."""
        seconds, start = self._start
        return max(0.0, self._foreign_seconds() - seconds) / (time.perf_counter() - start)

    def _foreign_seconds(self) -> float:
        processes = all_processes()
        # of this process count only its own time: its children are the waiting variants, which count as foreign
        own = [p for p in processes if p == os.getpid() or descends(p, self.own, processes)]
        return busy_seconds() - sum(processes[process][1] for process in own)


def descends(process: int, ancestor: int, processes: dict[int, tuple[int, float]]) -> bool:
    """Whether a process is the ancestor or one of its descendants; `processes` gives the parent of each."""
    while process in processes and process != ancestor:
        process = processes[process][0]
    return process == ancestor


def busy_seconds() -> float:
    """Seconds of all processors and processes since the start of the machine, with those taken by a virtual host."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, interrupts, soft, stolen = fields
    return (user + nice + system + interrupts + soft + stolen) / TICKS


def all_processes() -> dict[int, tuple[int, float]]:
    """The parent and the seconds of every process, including its ended children."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15])) / TICKS
    return found
