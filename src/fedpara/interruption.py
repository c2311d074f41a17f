"""SIGINT and SIGTERM: the first ends a run in good order, a second SIGINT outright."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit status, by the shells' convention


class _Interruption:
    """Turns the first signal into `KeyboardInterrupt`, after a write in hand; what follows is for the code to close.

    A second SIGINT ends the process at once. A second SIGTERM is no more than a repetition: schedulers send several.
    """

    def __init__(self) -> None:
        self._received = self._holding = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Within this, signals are dealt with so."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._received = self._holding = False

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Within this, a first signal waits for the end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._received:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            os._exit(INTERRUPTED)
        if not self._received:
            self._received = True
            if not self._holding:
                raise KeyboardInterrupt


interruption = _Interruption()
