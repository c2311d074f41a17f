"""Give every key of the configuration wrong values: each must end in one line, or train.

python tools/stress/bad_values.py > lines.txt      # all cases; tests/system/test_bad_input.py draws a few
"""

import contextlib
import io
import logging
import os
import random
import sys
import tempfile
from functools import cache
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

VALUES = ("-1", "0", "1.5", "nan", "1e30", "x", "''", "null", "[1,a]", "{a:1}")
NAMES = ("-1", "x", "null")  # for whole groups and for keys that name a class
BASE = [
    "model=mlp", "data.max_train=40", "data.max_test=20", "logger=none", "trainer.max_epochs=1",
    "federation.num_clients=2", "federation.clients_per_round=1", "federation.num_rounds=1",
]  # fmt: skip
CHOICES = [
    [], ["algorithm=fedadam"], ["algorithm=feddyn"], ["algorithm=fedavgm"], ["algorithm=scaffold"], ["link=fedpaq"],
    ["algorithm=fedprox"], ["partition=dirichlet"], ["partition=shards"], ["model=vgg_small"], ["logger=csv"],
    ["executor=processes"],
]  # fmt: skip
LEFT_OUT = {"paths.root_dir", "paths.log_dir", "paths.output_dir", "resume"}  # strings without a wrong value here


@cache
def composed(*choice):
    """Dotted keys of the composed configuration."""

    def leaves(node, prefix=""):
        for name, value in node.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")

    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return set(leaves(OmegaConf.to_container(hydra.compose("train", [*BASE, *choice]))))


def keys(choice):
    """The keys that the choice adds, or all keys."""
    return sorted((composed(*choice) - composed() if choice else composed()) - LEFT_OUT)


def cases():
    """The arguments of every case."""
    for choice in CHOICES:
        for key in keys(choice):
            yield from ([*choice, f"{key}={value}"] for value in values(key))


def values(key):
    """What the key is tried with."""
    return NAMES if "." not in key or key.endswith("_") else VALUES


def drawn(number):
    """Arguments of one case, always the same one for a number; the others are not composed."""
    generator = random.Random(number)
    choice = generator.choice(CHOICES)
    key = generator.choice(keys(choice))
    return [*choice, f"{key}={generator.choice(values(key))}"]


def attempt(arguments):
    """The exit status of a run of one round, and its lines on standard error, without the log."""
    from fedpara.app import cli
    from fedpara.federation import Federation

    GlobalHydra.instance().clear()
    logging.getLogger().handlers.clear()
    whole = Federation.fit

    def one_round(federation):  # whatever num_rounds says
        federation.num_rounds = 1
        whole(federation)

    Federation.fit = one_round
    error, status, before, here = io.StringIO(), 0, sys.argv, os.getcwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(error),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        os.environ["PROJECT_ROOT"] = folder
        os.chdir(folder)
        sys.argv = ["train.py", *BASE, *arguments]
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        except BaseException as escaped:
            status, _ = "escaped", error.write(f"{type(escaped).__name__}: {escaped}\n")
        finally:
            sys.argv, Federation.fit = before, whole
            os.chdir(here)
    return status, error.getvalue().splitlines()


def is_right(case, status, lines):
    """Whether the run trained, or ended as a wrong configuration should: in one line that names the key."""
    errors = [line for line in lines if line.startswith("error: ")]
    key = case[-1].partition("=")[0].rpartition(".")[2]
    return status == 0 or (status == 2 and lines == errors and len(errors) == 1 and key in errors[0].lower())


if __name__ == "__main__":
    counts = {"trained": 0, "one line": 0, "wrong": 0}
    for case in cases():
        status, lines = attempt(case)
        verdict = "wrong" if not is_right(case, status, lines) else "trained" if status == 0 else "one line"
        counts[verdict] += 1
        print(f"{verdict} | {' '.join(case)} | {status} | {' / '.join(lines)[:400]}", flush=True)
    print(counts)
    sys.exit(bool(counts["wrong"]))
