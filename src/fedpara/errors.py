"""Errors that end a run and are shown in one line. This module imports little, so that a program starts fast."""

import signal


class CrashesAgain(RuntimeError):
    """A client crashes round after round, because of the run's configuration or data."""


class TooFewClients(Exception):
    """Too few clients finished a round, which then changes nothing; the message says how many it takes."""


class WorkerKilled(RuntimeError):
    """The process that trains a client dies again and again, by a signal or by its own exit."""


def described(error: Exception) -> str:
    """An error's text, after its type where the text was not written for a reader: `KeyError: 'lr'`."""
    name, plain = type(error).__name__, isinstance(error, ValueError | RuntimeError | OSError)
    return str(error) if plain and str(error) else f"{name}: {error}".removesuffix(": ")


def signal_name(number: int) -> str:
    """The name of a signal, such as `SIGKILL`; `signal 34` for one without a name, as real-time signals are."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
