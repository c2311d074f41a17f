"""clients.csv: what became of every client in every round, written as the clients answer."""

import csv
import logging
import os
from pathlib import Path
from typing import Annotated, Any, TextIO

from pydantic import DirectoryPath, Field, validate_call

from fedpara.federation import Federation, FederationCallback, Outcome
from fedpara.files import UnusableFile
from fedpara.record import CLIENT_COLUMNS, ClientRecord, RoundRecord
from fedpara.runs import CLIENT_TABLE

log = logging.getLogger(__name__)
Positive = Annotated[int, Field(ge=1)]


class ClientTable(FederationCallback):
    """Writes `clients.csv`, one row per client of a round: its outcome, examples, steps, loss, seconds and bytes.

    Rows go to the file as they come, so that memory does not grow with clients or rounds. The file has whole rounds:
    one that was interrupted leaves no row, and a resumed run continues after the rounds of its checkpoint. Put this
    before `Checkpoint`, so that a round's rows are on the disk before its checkpoint is.

    Args:
        folder: the run folder.
        every: rounds between those that are written.
        max_rows: largest number of rows of the file; a round that would exceed it, and all later ones, are left out.
    """

    shows_clients = True

    @validate_call
    def __init__(self, folder: DirectoryPath, every: Positive = 1, max_rows: Positive = 1_000_000) -> None:
        self.path: Path = folder / CLIENT_TABLE
        self.every, self.max_rows = every, max_rows
        self._stream: TextIO | None = None
        self._writer: Any = None
        self._end = 0

    def on_fit_start(self, federation: Federation) -> None:
        """Open the file, and keep the rows of a resumed run's earlier rounds."""
        columns = [*CLIENT_COLUMNS, *(["tier"] if federation.tiers else [])]
        last = self.every * (self.max_rows // federation.clients_per_round)
        if last + self.every <= federation.num_rounds:
            log.warning("%s: has no round after %d, max_rows=%d", self.path.name, last, self.max_rows)
        self._end = _end_of(self.path, columns, federation.round)
        self._stream = self.path.open("r+" if self._end else "w", newline="")
        self._cut()
        self._writer = csv.writer(self._stream)
        if not self._end:
            self._writer.writerow(columns)
            self._keep()

    def on_client_record(self, federation: Federation, record: ClientRecord) -> None:
        """Write the client's row, if its round is due."""
        if self._writes(record.round, federation.clients_per_round):
            self._writer.writerow(record.as_row())

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Flush the round's rows to disk."""
        if self._writes(record.round, federation.clients_per_round):
            self._keep()

    def on_fit_end(self, federation: Federation, outcome: Outcome) -> None:
        """Take back the rows of a round that did not end, and close the file."""
        if self._stream:
            self._stream.flush()
            self._cut()
            self._stream.close()
            self._stream = None

    def _writes(self, number: int, clients_per_round: int) -> bool:
        return number % self.every == 0 and number // self.every * clients_per_round <= self.max_rows

    def _keep(self) -> None:
        assert self._stream is not None
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._end = os.fstat(self._stream.fileno()).st_size

    def _cut(self) -> None:
        """End the file after the last round that is kept."""
        assert self._stream is not None
        self._stream.seek(self._end)
        self._stream.truncate()


def _end_of(path: Path, columns: list[str], finished: int) -> int:
    """Number of bytes up to the last row of the finished rounds; 0 if there is no file, or it has no whole line.

    Raises:
        UnusableFile: the file is not a table of clients.
    """
    if not path.is_file():
        return 0
    with path.open("rb") as stream:
        head = stream.readline()
        if not head.endswith(b"\n"):
            return 0
        end = len(head)
        try:
            if head.decode().strip().split(",") != columns:
                raise ValueError("other columns")
            for line in stream:
                if not line.endswith(b"\n") or int(line.partition(b",")[0]) > finished:
                    break
                end += len(line)
        except ValueError as error:
            raise UnusableFile(f"{path}: not a table of clients, or damaged ({error})") from error
    return end
