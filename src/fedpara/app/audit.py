"""The program `audit`: it checks a run folder against its log, `audit.jsonl`, and does rounds again.

First it checks the chain of the log, and every file that the log names; that takes seconds and builds nothing. Then
`replay=3`, `replay=1,4` or `replay=all` does rounds again from the checkpoint before each, and compares all bits.
`expect=<hash>` is a hash that was published: the log must have it. Any other key is one of the run's configuration.
The first thing that does not fit is one line and exit status 1.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import get_args

from fedpara import chain
from fedpara.app.build import build
from fedpara.app.errors import FAILED, ConfigurationError, one_line, show_usage, stop
from fedpara.app.evaluation import configuration
from fedpara.app.make import Make, find_modules_here
from fedpara.app.trust import trusted_names
from fedpara.chain import Line
from fedpara.files import UnusableFile
from fedpara.installation import command_of
from fedpara.record import counted
from fedpara.runs import (
    AUDIT,
    AUDIT_LOG,
    CHECKPOINT,
    CLIENTS,
    CONFIG,
    METRICS,
    OVERRIDES,
    PARTICIPANTS,
    Run,
    kept_checkpoint,
    read_rows,
)

USAGE = "run=<run folder> [replay=all|<round>,...] [expect=<hash>] [trusted=[mypackage.*]] [<key>=<value> ...]"
FILES = CONFIG, OVERRIDES, METRICS, PARTICIPANTS, CHECKPOINT
COMPARED = {  # in the order in which a round makes them
    "cohort": "cohort", "broadcast": "broadcast", "packets": "broadcast to a client", "uploads": "uploads",
    "outcomes": "outcomes", "server": "server state", "states": "client states", "progress": "rest of the checkpoint",
    "row": "metrics",
}  # fmt: skip
NAMED = {"packets": "what was sent to client", "outcomes": "the outcome of client", "states": "the client's file"}
TIMES = "time/", "cost/round_s"  # columns that no replay gives again


class Mismatch(Exception):
    """Something does not fit the log; the message is the one line to show."""


def verified(folder: Path, expected: str | None = None) -> list[Line]:
    """The log of a run folder, once its chain and all files that it names are checked.

    Args:
        expected: a hash that was published, which a line must have.

    Raises:
        Mismatch: the first line or file that does not fit.
        ConfigurationError: the folder holds no log.
    """
    path = folder / AUDIT_LOG
    if not path.is_file():
        raise ConfigurationError(f"run={folder}: holds no {AUDIT_LOG}; a run has one with callbacks=audited")
    try:
        lines = chain.read(path)
        _require_order(path, lines)
        if expected is not None and expected not in {line["hash"] for line in lines}:
            raise Mismatch(f"expect={expected}: no line of {path} has this hash, it is not the log that was published")
        _require_rows(folder / METRICS, lines)
        _require_files(folder, lines)
        _require_states(folder, lines)
    except UnusableFile as error:
        raise Mismatch(str(error)) from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Mismatch(f"{path}: is not a log of this version") from error
    return lines


def _require_order(path: Path, lines: list[Line]) -> None:
    if not lines or lines[0]["kind"] != "start":
        raise Mismatch(f"{path}: begins with no start of a run")
    for number, (before, line) in enumerate(pairwise(lines), 2):
        if line["round"] != before["round"] + (line["kind"] == "round"):
            raise Mismatch(f"{path}: line {number} is of round {line['round']}, behind round {before['round']}")
        if line["kind"] == "start" and line["server"] != before["server"]:
            raise Mismatch(f"{path}: line {number}, a start, has another state than round {before['round']} left")


def _require_rows(path: Path, lines: list[Line]) -> None:
    """Name the first value of metrics.csv that is not the log's."""
    if METRICS not in lines[-1]["files"] or not path.is_file():
        return
    rows, last = {row["round"]: row for row in read_rows(path)}, lines[-1]["round"]
    for line in lines:
        if line["kind"] != "round":
            continue
        if line["round"] not in rows:
            raise Mismatch(f"{path}: has no round {line['round']}, and the log has it")
        if (found := _first_difference(line["row"], rows[line["round"]])) is not None:
            raise Mismatch(f"{path}: in round {line['round']} {found}")
    if (more := _behind(path, lines)) and Run(path.parent).state == "finished":
        raise Mismatch(f"{path}: has round {min(more)}, and the log ends with round {last}")


def _behind(path: Path, lines: list[Line]) -> list[int]:
    """The rounds of metrics.csv behind the log, which an unfinished run does again: no checkpoint was written yet."""
    return [row["round"] for row in read_rows(path) if row["round"] > lines[-1]["round"]]


def _first_difference(then: Line, now: Line) -> str | None:
    """The first column by name in which two rows differ, with both values."""
    for name in sorted(then.keys() | now.keys()):
        values = [str(float(row[name])) if name in row else "missing" for row in (now, then)]
        if values[0] != values[1]:
            return f"{name} is {values[0]}, and {values[1]} in the log"
    return None


def _require_files(folder: Path, lines: list[Line]) -> None:
    newest: dict[str, str] = {}
    for line in lines:
        newest |= line.get("files", {})
        if line.get("kept"):
            _require(kept_checkpoint(folder, line["round"]), line["files"][CHECKPOINT], line)
    last = lines[-1]
    for name in FILES:
        if name in newest:
            _require(folder / name, newest[name], last, only_logged=name == METRICS)
        elif (folder / name).is_file():
            raise Mismatch(f"{folder / name}: is not in the log")


def _require_states(folder: Path, lines: list[Line]) -> None:
    """Check the files of clients' states: those that count now, and those that each kept checkpoint names."""
    now: dict[str, tuple[str, str]] = {}  # by kind and client
    checked: set[str] = set()
    for line in lines:
        now |= {name.rpartition("-")[0]: (name, expected) for name, expected in line.get("states", {}).items()}
        for name, expected in now.values() if line.get("kept") else ():
            if name not in checked:
                _require(folder / AUDIT / CLIENTS / name, expected, line)
                checked.add(name)
    for name, expected in now.values():
        _require(folder / CLIENTS / name, expected, lines[-1])


def _require(path: Path, expected: str, line: Line, only_logged: bool = False) -> None:
    """Check a file; with `only_logged` a table that begins with the round, up to that of the line."""
    if not path.is_file():
        raise Mismatch(f"{path}: is missing, the log has it after round {line['round']}")
    if (_digest_to(path, line["round"]) if only_logged else chain.file_digest(path)) != expected:
        raise Mismatch(f"{path}: was changed, it is not the file of the log after round {line['round']}")


def _digest_to(path: Path, end: int) -> str:
    head, *rows = path.read_bytes().splitlines(keepends=True)
    return chain.digest(b"".join([head, *(row for row in rows if int(row.split(b",")[0]) <= end)]))


class Replay:
    """The experiment of a run folder, built again in a folder of its own, which does rounds of the run again.

    Args:
        folder: the run folder.
        lines: its log, verified.
        own: an empty folder, for the states of clients.
        overrides, trusted: see `evaluation.configuration`.

    Raises:
        Mismatch: the initial model is not that of the log.
    """

    def __init__(
        self, folder: Path, lines: list[Line], own: Path, overrides: list[str], trusted: Sequence[str]
    ) -> None:
        from fedpara.callbacks import Checkpoint
        from fedpara.callbacks.audit import Witness, data_digest, state_digest, surroundings
        from fedpara.state import join

        self.folder, self.lines, self.own = folder, lines, own
        self.witness = Witness()
        cfg = configuration(folder, overrides, trusted, not_built=("callbacks", "logger"))
        make = Make(cfg)
        experiment, self.federation = build(cfg, [Checkpoint(own), self.witness])
        make.call("data", experiment.datamodule.setup)
        make.call("data", experiment.datamodule.to, experiment.executor.device)
        experiment.executor.prepare()
        self.data, self.surroundings = data_digest(experiment.datamodule), surroundings(self.federation)
        if not lines[0]["round"] and state_digest(join(self.federation.server)) != lines[0]["server"]:
            raise Mismatch("the initial model is not that of the log")

    def again(self, number: int) -> str:
        """Do a round again from the nearest checkpoint before it; return what had the same bits.

        Raises:
            Mismatch: the first thing that differs.
            ConfigurationError: there is nothing to start from, or only what noise that cannot be drawn again made.
        """
        if self.data != self.start_of(number)["data"]:
            raise Mismatch(f"round {number}: the examples, or who holds which, are not those of the log")
        self._go_to(number - 1)
        while self.federation.round < number:
            self.federation.num_rounds = self.start_of(self.federation.round + 1)["num_rounds"]
            record = self.federation.run_round()
        (line,) = (line for line in self.lines if line["kind"] == "round" and line["round"] == number)
        seen = json.loads(chain.canonical(self.witness.observed(self.federation, record)))
        compared = [name for name in COMPARED if name in line and name not in self.unrepeatable]
        for name in compared:
            if found := self._difference(name, line, seen):
                raise Mismatch(f"round {number}: {found}")
        if line.get("kept") or line is self.lines[-1]:
            self._require_checkpoint(
                kept_checkpoint(self.folder, number) if line["kept"] else self.folder / CHECKPOINT, line
            )
        return f"round {number}: the same bits ({', '.join(COMPARED[name] for name in compared)})"

    def start_of(self, number: int) -> Line:
        """The start of the run that did a round."""
        return [line for line in self.lines if line["kind"] == "start" and line["round"] < number][-1]

    @property
    def unrepeatable(self) -> set[str]:
        """What depends on noise from the operating system's entropy, which nobody can draw again."""
        terms = self.federation.privacy and self.federation.privacy.terms
        if not terms or terms.seed is not None or terms.noise_multiplier == 0:
            return set()
        return {"server", "progress", "row"} | ({"uploads"} if terms.noise == "clients" else set())

    def _go_to(self, finished: int) -> None:
        """Have so many rounds finished, or fewer if no checkpoint is nearer."""
        kept = [line["round"] for line in self.lines if line.get("kept") and line["round"] <= finished]
        if not kept and self.lines[0]["round"]:
            raise ConfigurationError(
                f"replay={finished + 1}: no checkpoint before it was kept, and the log begins behind round "
                f"{self.lines[0]['round']}"
            )
        if "server" in self.unrepeatable and finished and finished not in kept:
            raise ConfigurationError(
                f"replay={finished + 1}: must be a round behind a kept checkpoint, the noise of round {finished} "
                "cannot be drawn again; callbacks.audit.keep=1 keeps all"
            )
        if kept and (kept[-1] == finished or kept[-1] > self.federation.round):
            self._restore(kept[-1])

    def _restore(self, number: int) -> None:
        """Set the federation to a checkpoint that was kept; its files are read where they are."""
        from fedpara.callbacks import restore

        rmtree(self.own / CLIENTS, ignore_errors=True)
        (self.own / CHECKPOINT).unlink(missing_ok=True)
        kept = self.folder.absolute() / AUDIT
        (self.own / CHECKPOINT).symlink_to(kept_checkpoint(self.folder, number).absolute())
        restore(self.federation, self.own)
        store = self.federation.clients.store
        for name, path in (store.paths() if store else {}).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(kept / CLIENTS / name)
        line = next(line for line in self.lines if line.get("kept") and line["round"] == number)
        self._require_checkpoint(kept_checkpoint(self.folder, number), line)

    def _require_checkpoint(self, path: Path, line: Line) -> None:
        """Refuse a checkpoint that holds something else than the log says, though the log has the file's hash."""
        from fedpara.callbacks.audit import state_digest
        from fedpara.callbacks.checkpoint import SERVER
        from fedpara.storage import read_tensors

        state, metadata = read_tensors(path, {})
        prefix = f"{SERVER}/"  # a replay sees what else there is: it is what broadcasts are made of
        server = state_digest({n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)})
        progress = chain.digest(chain.canonical(json.loads(metadata["progress"])))
        if (server, progress) != (line["server"], line.get("progress", progress)):
            raise Mismatch(f"{path}: is not the state that the log has after round {line['round']}")

    def _difference(self, name: str, line: Line, seen: Line) -> str | None:
        then, now = line[name], seen[name]
        if name == "row":
            return _first_difference(
                *({k: v for k, v in row.items() if not k.startswith(TIMES)} for row in (then, now))
            )
        if then == now:
            return None
        if name == "cohort":
            return f"the cohort is {now}, and {then} in the log"
        if name == "uploads":
            pairs = zip_longest(then, now, fillvalue=["none"])
            client = next(one[0] if one != ["none"] else other[0] for one, other in pairs if one != other)
            return f"the upload of client {client} is not that of the log"
        if name in NAMED:
            key = min(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
            shown = f": {now.get(key)}, not {then.get(key)}" if name == "outcomes" else ""
            return f"{NAMED[name]} {key} is not that of the log{shown}{self._tensors(name, key, line)}"
        return f"the {COMPARED[name]} is not that of the log{self._tensors(name, '', line)}"

    def _tensors(self, name: str, key: str, line: Line) -> str:
        """Which tensors differ from those of a file that was kept."""
        from fedpara.callbacks.checkpoint import SERVER
        from fedpara.state import join
        from fedpara.storage import read_tensors

        store = self.federation.clients.store
        if name == "server":
            now = join({SERVER: join(self.federation.server)})
        elif name == "states" and store and key in store.paths():
            now, _ = read_tensors(store.paths()[key], {})
        else:
            return ""
        then = self.folder / AUDIT / CLIENTS / key if key else kept_checkpoint(self.folder, line["round"])
        if not line.get("kept") or not then.is_file():
            return ""
        kept, _ = read_tensors(then, {})
        differing = [name for name in now if name not in kept or not kept[name].equal(now[name])]
        return f"; {len(differing)} of {len(now)} tensors differ, first {differing[0]}" if differing else ""


def replay(folder: Path, lines: list[Line], rounds: list[int], overrides: list[str], trusted: Sequence[str]) -> None:
    """Do rounds again, in their order, and print a line for each."""
    with TemporaryDirectory(prefix="fedpara-audit-") as own:
        run = Replay(folder, lines, Path(own), overrides, trusted)
        try:
            for note in dict.fromkeys(note for number in rounds for note in _notes(run, number)):
                print(note)
            for number in rounds:
                print(run.again(number))
        finally:
            run.federation.close()


def _notes(run: Replay, number: int) -> Iterator[str]:
    """What to know before a round is said to differ, or to be the same."""
    then, now = run.start_of(number)["surroundings"], run.surroundings
    if others := [f"{name} {then[name]} then, {now[name]} now" for name in then if then[name] != now[name]]:
        yield f"note: the bits may differ because of {'; '.join(others)}"
    if run.unrepeatable:
        names = ", ".join(name for key, name in COMPARED.items() if key in run.unrepeatable)
        yield f"note: noise from the operating system's entropy cannot be drawn again, so not compared: {names}"


def _rounds(text: str, lines: list[Line]) -> list[int]:
    there = [line["round"] for line in lines if line["kind"] == "round"]
    if text == "all":
        return there
    chosen = [int(number) if re.fullmatch("[0-9]{1,18}", number) else 0 for number in text.split(",")]
    if not set(chosen) <= set(there):
        allowed = f"rounds of the log, {there[0]} to {there[-1]}" if there else "absent, the log has no round"
        raise ConfigurationError(f"replay={text}: must be all, or {allowed}")
    return sorted({*chosen})


def main() -> None:
    """Print what was checked; one line and exit status 1 for what does not fit, 2 for wrong arguments."""
    show_usage(f"{command_of('audit')} {USAGE}\n\n{__doc__}")
    find_modules_here()
    try:
        _audit(dict(argument.partition("=")[::2] for argument in sys.argv[1:]))
    except (Mismatch, *get_args(FAILED)) as error:
        stop(one_line(error), status=1)
    except (ConfigurationError, ValueError) as error:
        stop(one_line(error))


def _audit(arguments: dict[str, str]) -> None:
    if "run" not in arguments:
        raise ConfigurationError(f"run: missing; give a run folder, {command_of('audit')} run=logs/train/runs/<run>")
    folder, chosen = Path(arguments.pop("run")).expanduser(), arguments.pop("replay", None)
    trusted = trusted_names([f"trusted={arguments.pop('trusted')}"] if "trusted" in arguments else [])
    expected = arguments.pop("expect", None)
    if chosen is None and arguments:
        key, value = next(iter(arguments.items()))
        raise ConfigurationError(f"{key}={value}: needs replay=, nothing is built without it")
    lines = verified(folder, expected)
    last = lines[-1]
    rounds = _rounds(chosen, lines) if chosen is not None else []
    done = sum(line["kind"] == "round" for line in lines)
    print(f"log: {counted(len(lines), 'line')}, {counted(done, 'round')}, up to round {last['round']}")
    kept = sum(bool(line.get("kept")) for line in lines)
    print(f"files: as in the log, with {counted(kept, 'kept checkpoint')}")
    if more := _behind(folder / METRICS, lines):
        print(f"note: {METRICS} goes on to round {more[-1]}, and the log does not: the run is {Run(folder).state}")
    print(f"hash: {last['hash']}")
    if expected not in (None, last["hash"]):
        number = next(line["round"] for line in lines if line["hash"] == expected)
        print(f"expected: the hash after round {number}, behind which lines were added")
    if rounds and Run(folder).is_deployed:
        raise ConfigurationError(f"replay={chosen}: must be absent, the clients of this run have their own data")
    if rounds:
        replay(folder, lines, rounds, [f"{key}={value}" for key, value in arguments.items()], trusted)
