"""Errors that end a run and are shown in one line, and words for them; light, so that a program starts at once."""

import signal


class CrashesAgain(RuntimeError):
    """A client crashes round after round, because of the run's configuration or data."""


class WorkerKilled(RuntimeError):
    """The process in which a client is trained dies again and again, of a signal or by its own exit."""


def signal_name(number: int) -> str:
    """Of a signal that ended a process: `SIGKILL`; `signal 34` where it has no name, as real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
