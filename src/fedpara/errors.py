"""Errors that end a run and are shown in one line; this module imports nothing, so that a program starts at once."""


class CrashesAgain(RuntimeError):
    """A client crashes round after round, because of the run's configuration or data."""


class WorkerKilled(RuntimeError):
    """The process in which a client is trained dies again and again, of a signal or by its own exit."""
