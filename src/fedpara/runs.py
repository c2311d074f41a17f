"""The run folder: the names of its files, which no other module spells, and their contents."""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from fedpara.files import UnusableFile, is_reserved, write_atomically
from fedpara.metric import Metric
from fedpara.old_runs import modernised, retyped

METRICS, SUMMARY, CONFIG, OVERRIDES = "metrics.csv", "summary.json", "config.yaml", "overrides.yaml"
CHECKPOINT, CLIENTS = "checkpoint.safetensors", "clients"
CLIENT_TABLE = "clients.csv"
PARTICIPANTS, PARTITION = "participants.jsonl", "partition.png"
AUDIT_LOG, AUDIT = "audit.jsonl", "audit"
MARKS = {SUMMARY, METRICS, OVERRIDES, ".hydra"}
# results do not depend on these keys
UNINTERESTING = "resume", "trusted", "paths.", "logger", "callbacks", "sweep", "data.num_workers", "hydra."

# keys and groups that do not change a result up to a round that was tested, and those within them that do
NO_MATTER = (
    "callbacks", "logger", "paths", "resume", "seed", "paper", "factors", "trusted", "model.head", "data.num_workers",
    "data.eval_batch_size", "data.dataset.data_dir", "executor", "trainer.accelerator", "trainer.devices",
    "trainer.deterministic", "federation.num_rounds", "federation.eval_every", "federation.evaluate_personal",
    "federation.max_crashes", "pretrained.file",
)  # fmt: skip
MATTER = ("executor.matmul_precision", "factorization._target_")
READ = ("seed", "factors", "model.head")  # keys that decide if they are typed, by what others take from them
ON_CPU = ("trainer", "cpu")  # a choice that sets trainer.accelerator alone

DEFAULT = "default"  # stands for a choice that was not typed
NOTHING: dict[str, Any] = {  # the summary of a run that failed before its first round
    "state": "failed", "rounds": 0, "parameters": {}, "bytes_per_round": {}, "metrics": {"last": {}, "best": {}},
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run, finished or not; its files are read when they are needed.

    Attributes:
        folder: the run folder; any of its files may be missing.
    """

    folder: Path

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run can resume from a checkpoint; the first one is written before the first round."""
        return (self.folder / CHECKPOINT).is_file()

    @property
    def has_config(self) -> bool:
        """Whether its configuration was saved; otherwise the folder is not a run folder."""
        return (self.folder / CONFIG).is_file()

    @property
    def is_deployed(self) -> bool:
        """Whether its clients are real devices."""
        return (self.folder / PARTICIPANTS).is_file()

    @property
    def written(self) -> float:
        """Time of its last round, in seconds since the epoch; before the first round the time its folder changed."""
        path = self.folder / METRICS
        return (path if path.is_file() else self.folder).stat().st_mtime

    @property
    def name(self) -> str:
        """The folder's name, also of `.`; for a sweep's job the values that vary, `gamma=0.1_seed=0`."""
        return os.path.basename(os.path.abspath(self.folder))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; empty if the run has not written one.

        Raises:
            UnusableFile: the file is not a summary.
        """
        path = self.folder / SUMMARY
        if not path.is_file():
            return {}
        try:
            return {"state": "interrupted", "rounds": 0} | json.loads(path.read_bytes())
        except (ValueError, TypeError, RecursionError) as error:
            raise UnusableFile(f"{path}: not a summary, or damaged ({error})") from error

    @cached_property
    def state(self) -> str:
        """`running`, `finished`, `failed` or `interrupted`; also `interrupted` if the process was killed."""
        return "running" if is_reserved(self.folder) else self.summary.get("state", "interrupted")

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """metrics.csv, a row per round without its empty columns; a last line that a crash cut short is left out."""
        return read_rows(self.folder / METRICS)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration by dotted key, with current names; empty if config.yaml is missing."""
        return dict(leaves(self.nested_config))

    @cached_property
    def nested_config(self) -> dict[str, Any]:
        """The resolved configuration as it is written, with current names; empty if config.yaml is missing."""
        return modernised(self._saved_config) if self._saved_config else {}

    @cached_property
    def _saved_config(self) -> dict[str, Any]:
        path = self.folder / CONFIG
        return _read_yaml(path, dict) if path.is_file() else {}

    @cached_property
    def overrides(self) -> dict[str, str]:
        """The typed overrides by key: `{"factorization.gamma": "0.1"}`."""
        return typed_values(map(str, _read_yaml(self._typed, list))) if self._typed else {}

    @property
    def has_overrides(self) -> bool:
        """Whether it is known what was typed, nothing perhaps."""
        return self._typed is not None

    @property
    def _typed(self) -> Path | None:
        """The file of the typed overrides; Hydra's own in older run folders."""
        paths = self.folder / OVERRIDES, self.folder / ".hydra" / OVERRIDES
        return next((path for path in paths if path.is_file()), None)

    @property
    def seed(self) -> str | None:
        """Its seed; without a record of it, the number at the end of its folder's name, `dense-0`; else None."""
        at_end = re.search(r"-(\d+)$", self.name)
        found = self.config.get("seed", self.overrides.get("seed", at_end and at_end[1]))
        return None if found is None else str(found)

    @property
    def setting(self) -> str:
        """What differs between runs except their seeds, `gamma=0.1 algorithm=scaffold`; empty if nothing was typed."""
        names = short_names(self.overrides)
        return " ".join(f"{names[key]}={value}" for key, value in self.overrides.items() if key != "seed")

    def value(self, key: str) -> object:
        """The value of a key that can be typed: that of config.yaml, else the one typed, else "default"."""
        if key in self.config:
            return self.config[key]
        group = {name: value for name, value in self.config.items() if name.startswith(f"{key}.")}
        # a choice, `factorization=dense`, is not what its group has become
        return group if group and "." in key else _read_value(key, self.overrides.get(key, DEFAULT))

    def is_of(self, typed: Iterable[str]) -> bool:
        """Whether its result, up to its last round, is that of these overrides."""
        both = [f"{key}={value}" for key, value in self.overrides.items()], [*typed]
        own, asked = (typed_values(retyped(words, self._saved_config)) for words in both)
        return all(
            own.get(key) == asked.get(key) or self.value(key) == _read_value(key, asked.get(key, DEFAULT))
            for key in own | asked
            if _decides(key)
        )

    def last(self, metric: str) -> float | None:
        """The latest value of a metric, which not every round measures."""
        return next((row[metric] for row in reversed(self.rows) if metric in row), None)

    def best(self, metric: Metric) -> float | None:
        """The best value of a column."""
        return metric.best(row[metric.name] for row in self.rows if metric.name in row)

    @property
    def headline(self) -> Metric:
        """The metric that judges its module, as the module logs it; accuracy in older folders, which do not name it."""
        return Metric(**self.summary.get("headline", {}))

    @property
    def is_personal(self) -> bool:
        """Whether a part of the model stays with the clients."""
        return bool(self.summary.get("parameters", {}).get("personal"))

    @property
    def judged(self) -> Metric:
        """The column that judges the run."""
        return self.headline.judged(self.is_personal)

    @property
    def seconds(self) -> float | None:
        """Wall time of all rounds; None if metrics.csv lacks that of a round."""
        times = [row.get("time/round_s") for row in self.rows]
        known = [time for time in times if time is not None]
        return sum(known) if len(known) == len(times) else None

    @property
    def pace(self) -> float | None:
        """Seconds of a round, on average; None before the first, or if metrics.csv lacks them."""
        return None if self.seconds is None or not self.rows else self.seconds / len(self.rows)

    @property
    def started_in(self) -> Path:
        """The folder in which its program was started; paths in older run folders are relative to it."""
        cwd = self._runtime.get("cwd")
        return Path(cwd) if isinstance(cwd, str) else Path.cwd()

    @property
    def config_dirs(self) -> list[str]:
        """The folders of configurations with which its program was started, `--config-dir=...`."""
        sources = [source for source in self._runtime.get("config_sources") or [] if isinstance(source, dict)]
        return [str(source.get("path")) for source in sources if source.get("provider") == "command-line"]

    @property
    def _runtime(self) -> dict[str, Any]:
        """What Hydra notes of the start of the program; empty if it is missing or damaged."""
        try:
            read = yaml.load((self.folder / ".hydra" / "hydra.yaml").read_text(), _LOADER)["hydra"]["runtime"]
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            return {}
        return read if isinstance(read, dict) else {}


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast


def kept_checkpoint(folder: Path, number: int) -> Path:
    """The checkpoint of a round that an audit log has kept."""
    return folder / AUDIT / f"{number}.safetensors"


def _read_yaml(path: Path, kind: type[Any]) -> Any:
    try:
        read = yaml.load(path.read_text(), _LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnusableFile(f"{path}: not valid YAML, or damaged") from error
    if not isinstance(read, kind | None):
        raise UnusableFile(f"{path}: must be a YAML {'mapping' if kind is dict else 'list'}")
    return read or kind()


def typed_values(overrides: Iterable[str]) -> dict[str, str]:
    """The overrides on which a result depends, by key: `{"factorization.gamma": "0.1"}`."""
    typed = (override.partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in typed if not key.startswith(UNINTERESTING)}


@cache
def _read_value(key: str, text: str) -> object:
    """What a typed text means: `True` is `true`, `0.10` is `0.1`, and `[0,10]` is `[0, 10]`."""
    try:
        value = yaml.load(DEFAULT if (key, text) == ON_CPU else text, _LOADER)
    except (yaml.YAMLError, ValueError):
        return text
    with suppress(ValueError, TypeError):
        return value if isinstance(value, int) else float(value)  # YAML reads 1e-3 as a word
    return value


def _decides(key: str) -> bool:
    """Whether a typed key can change a result up to a round that was tested."""
    own = key.replace("executor.inner.", "executor.")
    return own in MATTER or _within(own, READ) or not _within(own, NO_MATTER)


def deciding(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a configuration, by dotted key, that decide a run's result up to any of its rounds."""
    renamed = {key.replace("executor.inner.", "executor."): value for key, value in config.items()}
    # a schedule's rates, and the noise for an epsilon, depend on the number of rounds from the first one on
    planned = config.get("federation.lr_schedule") or config.get("privacy.target_epsilon")
    matter = {*MATTER, "federation.num_rounds"} if planned else MATTER
    return {key: value for key, value in renamed.items() if key in matter or not _within(key, NO_MATTER)}


def _within(key: str, groups: Iterable[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def leaves(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The values of nested dictionaries, by dotted key."""
    if not isinstance(node, dict):
        yield prefix, node
        return
    for name, value in node.items():
        yield from leaves(value, f"{prefix}.{name}".lstrip("."))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a metrics.csv without their empty columns; none if there is no file.

    Raises:
        UnusableFile: the file is not such a table.
    """
    if not path.is_file():
        return []
    try:
        whole, _, _ = path.read_bytes().decode().rpartition("\n")  # a power loss can leave half a row
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(io.StringIO(whole))]
        return [{**row, "round": int(row["round"])} for row in rows]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UnusableFile(f"{path}: not a table of rounds, or damaged ({error})") from error


def read_clients(path: Path) -> Iterator[dict[str, int | float | str | None]]:
    """The rows of a clients.csv one by one, so that a table of any length can be read; none if there is no file.

    Raises:
        UnusableFile: the file is not such a table.
    """
    if not path.is_file():
        return
    try:
        with path.open(newline="") as stream:
            for row in csv.DictReader(stream):
                yield {name: _of_client(name, value) for name, value in row.items()}
    except (ValueError, TypeError, csv.Error) as error:
        raise UnusableFile(f"{path}: not a table of clients, or damaged ({error})") from error


def _of_client(name: str, value: str) -> int | float | str | None:
    if name in ("outcome", "tier"):
        return value
    return (float(value) if name in ("train_loss", "seconds") else int(value)) if value else None


def sample_of_clients(path: Path, most: int) -> list[dict[str, int | float | str | None]]:
    """At most so many rows of a clients.csv: all rounds of every client, or of every k-th if that is too many."""
    every = max(1, -(-sum(1 for _ in read_clients(path)) // most))
    return list(islice((row for row in read_clients(path) if int(row["client"] or 0) % every == 0), most))


def summarise_failure(folder: Path, error: str) -> None:
    """Write the error into the summary of a failed run; a run that was only refused a resume keeps its summary."""
    try:
        summary = Run(folder).summary or NOTHING
    except UnusableFile:  # leave a damaged file as it is
        return
    if summary["state"] == "failed":
        write_atomically(folder / SUMMARY, json.dumps(summary | {"error": error}, indent=2).encode())


def find_runs(*roots: Path) -> list[Run]:
    """Every run folder in or below `roots`, once, in the order of their names.

    Raises:
        ValueError: a root is not a folder, or holds no run.
    """
    found: dict[str, Run] = {}
    for root in roots:
        folders = list(_folders(root))
        if not folders:
            raise ValueError(f"{root}: holds no run folder ({METRICS}, {SUMMARY})")
        for folder in folders:
            found.setdefault(os.path.realpath(folder), Run(folder))
    return sorted(found.values(), key=lambda run: _natural(run.folder))


def _folders(root: Path) -> Iterator[Path]:
    """The run folders in or below a root; those behind a link come last, and only if they are not also there."""
    seen, waiting = set[str](), [str(root)]
    for start in waiting:  # it grows
        for name, folders, files in os.walk(start):
            place = os.path.realpath(name)
            if _is_run({*folders, *files}) and place not in seen:
                yield Path(name)
            inner = [] if place in seen else [f for f in folders if not f.startswith(".") and f != "wandb"]
            folders[:] = [folder for folder in inner if not os.path.islink(os.path.join(name, folder))]
            waiting += [os.path.join(name, folder) for folder in inner if folder not in folders]
            seen.add(place)


def _is_run(names: set[str]) -> bool:
    """Whether a folder that holds these names is a run's; `CSVLogger` puts a metrics.csv beside its hparams.yaml."""
    marks = MARKS & names
    return bool(marks) and not (marks == {METRICS} and "hparams.yaml" in names)


def _natural(folder: Path) -> list[Any]:
    """Sorts gamma=0.2 before gamma=0.10, as numbers and not as text."""
    return [[_number(value) for value in part.replace("=", "_").split("_")] for part in folder.parts]


def _number(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


def headline(runs: Sequence[Run]) -> Metric:
    """The headline that most of the runs have."""
    return next(iter(Counter(run.headline for run in runs if run.summary).most_common(1)), (Metric(), 0))[0]


def judged(runs: Sequence[Run]) -> Metric:
    """One column that judges all runs, for comparisons."""
    return headline(runs).judged(any(run.is_personal for run in runs))


def axes(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The typed keys that vary between runs: short name (`gamma`) to each run's value.

    If a run did not type a key, its value comes from the configuration, or is "default". A key that decides no result
    may have been typed to resume a run; it counts only if it tells apart two runs of a folder that are otherwise equal.
    """
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    names, columns = short_names(keys), {key: _column(runs, key) for key in keys}
    varying = {key: values for key, values in columns.items() if len(set(values)) > 1}
    known: list[Sequence[object]] = [[(run.folder.absolute().parent, run.seed) for run in runs]]
    known += [values for key, values in varying.items() if _decides(key)]
    alike = list(zip(*known, strict=True))
    apart = {key: len({*zip(alike, values, strict=True)}) > len({*alike}) for key, values in varying.items()}
    return {names[key]: values for key, values in varying.items() if _decides(key) or apart[key]}


def _column(runs: Sequence[Run], key: str) -> list[str]:
    """A key's value in each run; equal values, `0.1` and `0.10`, are shown as the first of them that was typed."""
    given = [(run.overrides.get(key, str(run.config.get(key, DEFAULT))), run) for run in runs]
    shown: dict[str, str] = {}
    values: dict[str, object] = {}  # by what is shown for them
    for text, run in sorted(given, key=lambda one: key not in one[1].overrides):
        value = run.value(key)
        shown.setdefault(text, next((other for other, known in values.items() if known == value), text))
        values.setdefault(shown[text], value)
    return [shown[text] for text, _ in given]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last word of each dotted key, or the whole key if two end in the same word."""
    keys = list(keys)
    words = [key.rpartition(".")[2] for key in keys]
    return {key: word if words.count(word) == 1 else key for key, word in zip(keys, words, strict=True)}
