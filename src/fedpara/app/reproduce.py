"""The program `reproduce`: the experiments of configs/reproduce.yaml as one queue that can be resumed.

A job is one run folder, `logs/reproduce/<name>/<values that vary>`. The same command skips finished jobs and resumes
the others, to the same bits on the same CPU with the same number of threads.
"""

import argparse
import contextlib
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Annotated, NoReturn
from zlib import crc32

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpara.app.composition import CONFIG_DIR, compose, composition_error, require_composable, sweep_params
from fedpara.app.errors import ConfigurationError, one_line, stop
from fedpara.app.overrides import absolute, parse
from fedpara.app.sweep import job_name, process_of
from fedpara.errors import signal_name
from fedpara.installation import command_of, root
from fedpara.interruption import INTERRUPTED, interruption
from fedpara.private.hydra import jobs_of_sweep
from fedpara.record import counted
from fedpara.runs import Run, deciding, find_runs, typed_values

log = logging.getLogger("reproduce")
ROUNDS, WEIGHTS = "federation.num_rounds", "pretrained.file"
POLL_S = 0.2  # seconds between two looks at the running jobs


def _require_grammar(typed: str) -> str:
    try:
        for override in shlex.split(typed):
            parse(override)
    except (ValueError, HydraException) as error:
        raise ValueError(f"{typed}: {one_line(error)}") from error
    return typed


Typed = Annotated[str, AfterValidator(_require_grammar)]  # overrides, as in a shell


class Entry(BaseModel):
    """A table or a part of one: the jobs of one or more sweeps.

    Attributes:
        name: the folder of its jobs and its report.
        common: overrides of all jobs, as they are typed.
        jobs: further overrides of one sweep each; their values name the jobs. An experiment's own sweep comes with it.
        scaled: whether two cores can train it.
        baseline: the setting from which its report takes differences; None: the first.
    """

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(pattern=r"^\w[\w.=+-]*$")]  # a folder's
    common: Typed
    jobs: Annotated[list[Typed], Field(min_length=1)] = [""]
    scaled: bool = False
    baseline: str | None = None


@dataclass(frozen=True)
class Job:
    """One run of the queue.

    Attributes:
        entry: the entry that it belongs to.
        folder: its run folder.
        overrides: what is typed for it.
    """

    entry: Entry
    folder: Path
    overrides: tuple[str, ...]

    @property
    def label(self) -> str:
        """`fig5/setting=femnist_method=local_seed=0`."""
        return f"{self.entry.name}/{self.folder.name}"

    @cached_property
    def values(self) -> dict[str, str]:
        """The overrides that change the result, by key."""
        return typed_values(self.overrides)

    @property
    def run(self) -> Run:
        """What the run folder holds now."""
        return Run(self.folder)

    @cached_property
    def _composed(self) -> DictConfig:
        """Its configuration, for what an experiment sets; that takes long for a queue."""
        return compose(self.overrides)

    @property
    def num_rounds(self) -> int:
        """The rounds that it asks for."""
        return int(self.values.get(ROUNDS) or self._composed.federation.num_rounds)

    @property
    def is_finished(self) -> bool:
        """Whether it ran to its end as it is typed now; a kept run without a checkpoint counts as it is."""
        run = self.run
        if run.state != "finished" or not run.has_checkpoint:
            return run.state == "finished"
        return run.is_of(self.overrides) and self._has_rounds(run) and self._has_weights(run)

    def _has_rounds(self, run: Run) -> bool:
        """Whether a run was to have its rounds, or more of which the first ones are the same."""
        if run.overrides.get(ROUNDS) == self.values.get(ROUNDS):
            return True
        had, asked = run.value(ROUNDS), self.num_rounds
        return had == asked or (isinstance(had, int) and had > asked and ROUNDS not in deciding(run.config))

    def _has_weights(self, run: Run) -> bool:
        """Whether a run started from its weights, whose file may have been moved since."""
        if run.overrides.get(WEIGHTS) == (typed := self.values.get(WEIGHTS)):
            return True
        file = self._composed.pretrained.file if typed is None else parse(f"{WEIGHTS}={typed}").value()
        with contextlib.suppress(OSError):
            crc = None if file is None else crc32(Path(str(file)).read_bytes())
            return crc == run.config.get("pretrained.crc32")
        return False

    @property
    def state(self) -> str:
        """The run's state, or `not started`; `unfinished` if it ended with other values, such as fewer rounds."""
        run = self.run
        if run.state == "running" or run.summary:
            return "unfinished" if run.state == "finished" and not self.is_finished else run.state
        return "not started"


_ENTRIES = TypeAdapter(Annotated[list[Entry], Field(min_length=1)])


def entries(path: Path) -> list[Entry]:
    """The entries of a queue.

    Raises:
        ValueError: the file is not such a queue.
    """
    try:
        return _ENTRIES.validate_python(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML") from error
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"{part}: " for part in problem["loc"])
        raise ValueError(f"{path}: {place}{problem['msg']}") from error


def queue(chosen: Sequence[Entry], root: Path, extra: Sequence[str] = ()) -> list[Job]:
    """The jobs in their order: entry after entry, and within an entry all jobs of one seed before the next seed.

    Args:
        chosen: the entries.
        root: the folder that has a folder for each entry.
        extra: overrides of all jobs, which win.

    Raises:
        ValueError: two jobs have one folder.
    """
    jobs = [job for entry in chosen for job in _by_seed(_expanded(entry, root, extra))]
    folders = [job.folder for job in jobs]
    twice = next((job for number, job in enumerate(jobs) if job.folder in folders[:number]), None)
    if twice:
        raise ValueError(f"{twice.label}: must be in the queue once")
    return jobs


def _expanded(entry: Entry, root: Path, extra: Sequence[str]) -> list[Job]:
    common, fixed, jobs = shlex.split(entry.common), _fixed(entry, extra), []
    swept = [f"{key}={values}" for key, values in sweep_params(fixed).items()]
    for line in map(shlex.split, entry.jobs):
        own = {_key(o) for o in [*swept, *line]} | {_key(o) for o in common if parse(o).is_sweep_override()}
        shared = [o for o in fixed if _key(o) not in own]
        for overrides in jobs_of_sweep([*swept, *common, *line, *extra]):
            folder = root / entry.name / job_name(shared, overrides)
            jobs.append(Job(entry, folder, tuple(absolute(override, Path.cwd()) for override in overrides)))
    return jobs


def _fixed(entry: Entry, extra: Sequence[str]) -> list[str]:
    """What is typed for all jobs of an entry alike."""
    return [o for o in [*shlex.split(entry.common), *extra] if not parse(o).is_sweep_override()]


def _key(override: str) -> str:
    return parse(override).get_key_element()


def _by_seed(jobs: list[Job]) -> list[Job]:
    seeds = list(dict.fromkeys(job.values.get("seed", "") for job in jobs))
    return sorted(jobs, key=lambda job: seeds.index(job.values.get("seed", "")))


def hours_left(job: Job, jobs: Sequence[Job]) -> float | None:
    """Hours until a job is finished, at the pace of its own rounds or of those of its other seeds; None: not known."""
    if job.is_finished:
        return 0.0
    like = [other.run for other in jobs if other.entry.name == job.entry.name and _same_but_seed(other, job)]
    own = job.run.pace
    paces = [pace for run in like if (pace := run.pace) is not None] if own is None else [own]
    planned = [int(run.config["federation.num_rounds"]) for run in [job.run, *like] if run.rows and run.config]
    typed = ROUNDS in {**job.values, **job.run.overrides}
    rounds = job.num_rounds if typed else next(iter(planned), None)
    if not paces or rounds is None:
        return None
    return max(0, rounds - len(job.run.rows)) * (sum(paces) / len(paces)) / 3600


def _same_but_seed(one: Job, other: Job) -> bool:
    return one.values | {"seed": ""} == other.values | {"seed": ""}


def table(jobs: Sequence[Job], lanes: int) -> Table:
    """A row for each job with its state, rounds and hours left; the hours of all in the caption."""
    made = Table("job", "state", "rounds", "hours left")
    left = [hours_left(job, jobs) for job in jobs]
    for job, hours in zip(jobs, left, strict=True):
        shown = "unknown" if hours is None else f"{hours:.2f}"
        made.add_row(escape(job.label), job.state, str(len(job.run.rows) or ""), "" if job.is_finished else shown)
    num_finished, num_unknown = sum(job.is_finished for job in jobs), left.count(None)
    known = sum(hours for hours in left if hours is not None) / lanes
    unknown = f"; unknown for {counted(num_unknown, 'job')} without a measured round" if num_unknown else ""
    made.caption = f"{num_finished} of {len(jobs)} finished; hours left, {lanes} at a time: {known:.2f}{unknown}"
    return made


def work(jobs: Sequence[Job], lanes: int, threads: int | None, nice: int) -> list[Job]:
    """Run the jobs that are not finished, `lanes` at a time; returns those that did not finish.

    Args:
        lanes: number of processes.
        threads: threads of each; None: as many as torch takes by itself.
        nice: how far each gives way to other programs, 0 to 19.

    Raises:
        KeyboardInterrupt: after a signal, when the trainings in hand have ended; or if one was interrupted by itself.
    """
    waiting = [(number, job) for number, job in enumerate(jobs) if not job.is_finished]
    log.info("%d of %d jobs are finished", len(jobs) - len(waiting), len(jobs))
    running: dict[subprocess.Popen[bytes], Job] = {}
    with interruption.handled():
        try:
            while waiting or running:
                while waiting and len(running) < lanes:
                    number, job = waiting.pop(0)
                    if job.run.state == "running":
                        log.info("%s: left alone, another process trains it", job.label)
                        continue
                    with interruption.held_back():
                        running[_start(job, number, threads, nice)] = job
                for process in [process for process in running if process.poll() is not None]:
                    _conclude(running.pop(process), process.returncode)
                time.sleep(POLL_S)
        finally:
            for process in running:
                process.send_signal(signal.SIGINT)
            for process in running:
                process.wait()
    return [job for job in jobs if not job.is_finished]


def _start(job: Job, number: int, threads: int | None, nice: int) -> subprocess.Popen[bytes]:
    rounds = len(job.run.rows)
    log.info("%s: %s", job.label, f"goes on after {counted(rounds, 'round')}" if rounds else "starts")
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    # a resume repeats what was typed for the run, such as fewer rounds
    more = [f"{ROUNDS}={job.num_rounds}"] if ROUNDS in job.run.overrides.keys() - job.values.keys() else []
    command, environment = process_of([*job.overrides, *more], job.folder, number)
    process = subprocess.Popen(
        command,
        env=os.environ | environment | own,
        stdout=subprocess.DEVNULL,
        cwd=Path.cwd(),
        start_new_session=True,  # a Ctrl-C in the terminal reaches it through us, once
    )
    with contextlib.suppress(OSError):  # it may have ended, and only Linux has autogroups
        os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        # where Linux schedules each session as one group, the priority of a process counts only within its session
        Path(f"/proc/{process.pid}/autogroup").write_text(str(nice))
    return process


def _conclude(job: Job, status: int) -> None:
    """Say how a job ended, and write the report of its entry from the run folders."""
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        how = (
            f"killed by {signal_name(-status)}" if status < 0 else job.run.summary.get("error", f"exit status {status}")
        )
        log.error("%s: %s", job.label, how)
        return
    log.info("%s: finished", job.label)
    from fedpara.report import settings, write_report  # matplotlib takes a second to import
    from fedpara.report.differences import is_called

    folder, baseline = job.folder.parent, job.entry.baseline
    try:
        found = find_runs(folder)
        if baseline is not None and not any(is_called(setting, baseline) for setting in settings(found)):
            log.info("%s: no differences from %s yet", job.entry.name, baseline)
            baseline = None
        written = write_report(found, folder / "report", job.entry.name, baseline=baseline)
        log.info("%s: %s", job.entry.name, next(path for path in written if path.suffix == ".md"))
    except (ValueError, OSError) as error:  # the runs go on: their folders have everything that a later report needs
        log.error("%s: no report: %s", job.entry.name, error)


class _Parser(argparse.ArgumentParser):
    """Raises a `ValueError` for wrong arguments, so that they take one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number")
    return int(text)


def _arguments(typed: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog=command_of("reproduce"), description="Run the jobs of configs/reproduce.yaml that are not finished."
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all jobs, as for train")
    parser.add_argument("--list", action="store_true", help="show the jobs and the hours left; run nothing")
    parser.add_argument("--only", metavar="PATTERN", default="", help="only jobs with this in their name: fig5*seed=0")
    parser.add_argument("--scaled", action="store_true", help="only the set-ups that two cores can train")
    parser.add_argument("--lanes", type=_whole, default=1, help="jobs at a time (1)")
    parser.add_argument("--threads", type=_whole, help="threads of each job (torch's own number)")
    parser.add_argument("--nice", type=_whole, default=0, help="0 to 19: how far jobs give way to other programs (0)")
    default = root() / "logs" / "reproduce"
    parser.add_argument("--folder", type=Path, default=default, help="where the run folders are (logs/reproduce)")
    parser.add_argument("--queue", type=Path, default=Path(CONFIG_DIR, "reproduce.yaml"), help="another queue")
    given = parser.parse_intermixed_args(typed)
    bounds = {"lanes": (1, None), "threads": (1, None), "nice": (0, 19)}
    for name, (least, most) in bounds.items():
        value = getattr(given, name)
        if value is not None and (value < least or (most is not None and value > most)):
            allowed = f"{least} to {most}" if most else f"at least {least}"
            raise ValueError(f"--{name}={value}: must be {allowed}")
    if wrong := next((o for o in given.overrides if "=" not in o), None):
        raise ValueError(f"{wrong}: must be key=value")
    return given


def main() -> None:
    """Run or list the queue; exit status 2 and one line for wrong input, 1 for jobs that failed, 130 if interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    try:
        given = _arguments(sys.argv[1:])
        extra = given.overrides
        chosen = [entry for entry in entries(given.queue) if entry.scaled or not given.scaled]
        if not chosen:
            raise ValueError(f"--scaled: no entry of {given.queue} is scaled")
        jobs = queue(chosen, given.folder.absolute(), extra)
        jobs = [job for job in jobs if fnmatch(job.label, f"*{given.only}*")]
        if not jobs:
            raise ValueError(f"--only={given.only}: no job has this in its name")
        needed = list({job.entry.name: job.entry for job in jobs}.values())
        for entry in needed[: bool(extra)] if given.list else needed:  # a list must be quick: one composition at most
            require_composable(_fixed(entry, extra))
        if given.list:
            Console(width=None if Console().is_terminal else 150).print(table(jobs, given.lanes))
            return
        unfinished = work(jobs, given.lanes, given.threads, given.nice)
    except (HydraException, OmegaConfBaseException) as error:
        stop(composition_error(error, sys.argv[1:]))
    except (ConfigurationError, ValueError, OSError) as error:
        stop(str(error))
    except KeyboardInterrupt:
        stop("interrupted; the same command goes on", status=INTERRUPTED)
    if unfinished:
        stop(f"not finished: {', '.join(job.label for job in unfinished)}", status=1)
