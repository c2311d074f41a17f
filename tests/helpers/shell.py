"""What a person types, in this process, and what is shown."""

import logging
import os
import sys
import traceback

from hydra.core.global_hydra import GlobalHydra

from fedpara.app import cli

TINY = ["data.max_train=60", "data.max_test=40", "data.batch_size=16", "model.network.stages=[[4],[8],[8],[8]]"]
SMALL = [*TINY, "federation.num_clients=4", "federation.clients_per_round=2", "federation.num_rounds=2", "logger=none"]
SMALL += ["callbacks.partition_picture=null"]  # drawing takes longer than training here


class Forked:
    """In place of `subprocess.Popen`: a job forked from this process, which has the imports behind it."""

    def __init__(self, command, env, stdout, cwd):
        self.number = os.fork()
        if self.number == 0:
            status = 1
            try:
                GlobalHydra.instance().clear()
                logging.getLogger().handlers.clear()
                sys.argv = command[1:]
                cli.main()
                status = 0
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                traceback.print_exc()  # the parent sees the status alone
            finally:
                os._exit(status)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])


def states(out):
    """First and last column of the sweep's table."""
    cells = [line.strip("│").split("│") for line in out.splitlines() if line.startswith("│")]
    return {line[0].strip(): line[-1].strip() for line in cells}


def newest(tmp_path, kind="runs"):
    return max((tmp_path / "logs" / "train" / kind).iterdir())
