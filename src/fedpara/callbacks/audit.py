"""An auditable run: a chained log of what went into each round and came out of it, and the checkpoints between them.

The chain (`fedpara.chain`) is the linking of Haber and Stornetta, "How to Time-Stamp a Digital Document" (Journal of
Cryptology, 1991). `python src/audit.py` checks a run folder against its log, and does rounds again.
"""

import logging
import os
import platform
import secrets
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import DirectoryPath, Field, validate_call

from fedpara import __version__, chain
from fedpara.callbacks.checkpoint import Checkpoint, progress_of
from fedpara.callbacks.run_folder import git_commit
from fedpara.communication import Packet
from fedpara.data import FederatedDataModule
from fedpara.federation import Broadcast, Federation, FederationCallback, Outcome, Reply
from fedpara.files import UnusableFile, write_atomically
from fedpara.record import ClientRecord, RoundRecord
from fedpara.runs import (
    AUDIT,
    AUDIT_LOG,
    CHECKPOINT,
    CLIENTS,
    CONFIG,
    METRICS,
    OVERRIDES,
    PARTICIPANTS,
    kept_checkpoint,
)
from fedpara.state import State, join
from fedpara.storage import SUFFIX

log = logging.getLogger(__name__)
OF_CLIENTS = "cohort", "packets", "uploads", "outcomes", "states", "progress"  # left out where privacy hides clients


def state_digest(state: State) -> str:
    """SHA-256 of a state: of names, types, shapes and values, in the order of the names."""
    hasher = sha256()
    for name, tensor in sorted(state.items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def data_digest(data: FederatedDataModule) -> str:
    """SHA-256 of the examples that are there, and of who holds which; real clients' own are elsewhere."""
    train, test = data.examples
    tensors = {"train/inputs": train.inputs, "train/labels": train.labels}
    tensors |= {"test/inputs": test.inputs, "test/labels": test.labels, "indices": data.parts.indices}
    return state_digest(tensors | {"sizes": torch.from_numpy(np.ascontiguousarray(data.parts.sizes))})


def surroundings(federation: Federation) -> dict[str, Any]:
    """What the bits depend on besides configuration and data."""
    device = federation.executor.device
    return {
        "fedpara": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processor": _processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "executor": " of ".join(_executors(federation.executor)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def _executors(executor: Any) -> Iterator[str]:
    """The executor and those within it; `auto` has chosen by now."""
    while executor is not None:
        yield type(executor).__name__
        executor = getattr(executor, "inner", None)


def _processor() -> str:
    """The name of the processor; the architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.machine())


class Witness(FederationCallback):
    """Notes what goes into a round and comes out of it. `Audit` writes it down; an audit compares it with the log."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}

    def on_broadcast(self, federation: Federation, cohort: Sequence[int], broadcast: Broadcast) -> None:
        """Begin a round."""
        self._seen = {"cohort": list(cohort), "broadcast": _of_packet(broadcast.packet), "uploads": [], "outcomes": {}}
        if broadcast.packets or broadcast.by_tier:  # not the same for all clients
            self._seen["packets"] = {str(client): _of_packet(broadcast.to(client)) for client in cohort}

    def on_upload(self, federation: Federation, reply: Reply) -> None:
        """Note an upload, in the order in which uploads are added."""
        if federation.shows_clients:
            self._seen["uploads"].append([reply.report.client, *_of_packet(reply.packet)])

    def on_client_record(self, federation: Federation, record: ClientRecord) -> None:
        """Note what became of the client."""
        self._seen["outcomes"][str(record.client)] = record.outcome

    def observed(self, federation: Federation, record: RoundRecord) -> dict[str, Any]:
        """All of a round that has ended, as a line of the log without its chain.

        Where privacy hides clients, it has nothing that comes from single ones.
        """
        line = {"kind": "round", "round": record.round, "server": state_digest(join(federation.server))}
        line |= {"row": {n: v if isinstance(v, int) else float(v) for n, v in record.as_row().items()}, **self._seen}
        if not federation.shows_clients:
            return {name: value for name, value in line.items() if name not in OF_CLIENTS}
        progress = progress_of(federation).model_dump(mode="json", exclude_none=True)
        succeeded = [int(client) for client, outcome in self._seen["outcomes"].items() if outcome == "succeeded"]
        return line | {"progress": chain.digest(chain.canonical(progress)), "states": _states(federation, succeeded)}


class Audit(Witness):
    """Writes `audit.jsonl`: a line for each start of the run and for each round, chained by SHA-256.

    A line is written when the checkpoint of its round is whole and does not count yet. So a checkpoint never knows of a
    round that is not in the log, and a resumed run drops the lines behind its checkpoint. It goes before `Checkpoint`.

    Args:
        folder: the run folder.
        keep: rounds between checkpoints that are kept in `audit/`, from round 0; an audit does the rounds behind them
            again. Each costs the bytes of a checkpoint, and those of the clients' states that are new since the one
            before it. None: none is kept, and an audit begins with the first round.
    """

    @validate_call
    def __init__(self, folder: DirectoryPath, keep: Annotated[int, Field(ge=1)] | None = 1) -> None:
        super().__init__()
        self.folder, self.keep = folder, keep
        self._pending: list[dict[str, Any]] = []
        self._hash = chain.NOTHING
        self._linked: set[Path] = set()

    def require(self, federation: Federation) -> None:
        """Refuse a federation that no line would be written for.

        Raises:
            ValueError: no checkpoint is written after this callback was called.
        """
        behind = federation.callbacks[federation.callbacks.index(self) + 1 :]
        if not any(isinstance(callback, Checkpoint) and callback.folder == self.folder for callback in behind):
            raise ValueError("the audit log needs a Checkpoint behind it among the callbacks, in the same folder")

    def on_fit_start(self, federation: Federation) -> None:
        """Keep the lines of a resumed run's rounds, and begin a line for this start.

        Raises:
            UnusableFile: the log is damaged, or lacks rounds of the checkpoint.
            ValueError: see `require`.
        """
        self.require(federation)
        before = self._resumed(federation.round)
        salt = secrets.token_hex(32)  # so that the last hash, which may be published, tells nobody anything else
        start = {
            "kind": "start", "round": federation.round, "salt": salt,
            "seed": chain.digest(f"{salt} {federation.seed}".encode()), "num_rounds": federation.num_rounds,
            "data": data_digest(federation.executor.datamodule), "server": state_digest(join(federation.server)),
            "surroundings": surroundings(federation), **self._digests(CONFIG, OVERRIDES),
        }  # fmt: skip
        if not before and federation.shows_clients:
            start["states"] = _states(federation)
        self._pending = [start]

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Note the round; its line is written with its checkpoint."""
        self._pending.append(self.observed(federation, record))

    def on_checkpoint(self, federation: Federation, path: Path) -> None:
        """Write the lines up to this checkpoint, with the hashes of the files as they are now."""
        if not self._pending or path.parent != self.folder:
            return
        last = self._pending[-1]
        files = last.get("files", {}) | {CHECKPOINT: chain.file_digest(path)}
        last |= {"files": files | self._digests(METRICS, PARTICIPANTS)["files"], "kept": self._keep(federation, path)}
        self._hash = chain.append(self.folder / AUDIT_LOG, self._pending, self._hash)
        self._pending = []

    def on_fit_end(self, federation: Federation, outcome: Outcome) -> None:
        """Say the last hash."""
        if outcome == "finished" and not self._pending:
            log.info("%s: the hash after round %d is %s", AUDIT_LOG, federation.round, self._hash)

    def _resumed(self, round_number: int) -> list[chain.Line]:
        """Drop what a resumed run does again; a run that starts anew begins a new log."""
        path, kept = self.folder / AUDIT_LOG, list[chain.Line]()
        if round_number and path.is_file():
            kept = list(takewhile(lambda line: line["round"] <= round_number, chain.read(path, unfinished=True)))
            if kept and kept[-1]["round"] < round_number:
                raise UnusableFile(
                    f"{path}: ends with round {kept[-1]['round']}, and the checkpoint is of round {round_number}; "
                    f"its rounds between were not logged; to begin a new log, move it and {AUDIT}/ away"
                )
        if not kept:
            rmtree(self.folder / AUDIT, ignore_errors=True)
        for checkpoint in (self.folder / AUDIT).glob(f"*{SUFFIX}"):
            if int(checkpoint.stem) > round_number:
                checkpoint.unlink()
        write_atomically(path, b"".join(chain.canonical(line) + b"\n" for line in kept))
        self._hash = kept[-1]["hash"] if kept else chain.NOTHING
        return kept

    def _digests(self, *names: str) -> dict[str, dict[str, str]]:
        there = [name for name in names if (self.folder / name).is_file()]
        return {"files": {name: chain.file_digest(self.folder / name) for name in there}}

    def _keep(self, federation: Federation, path: Path) -> bool:
        """Keep the checkpoint and the clients' files that it names, by hard links, if its round is due."""
        kept = kept_checkpoint(self.folder, federation.round)
        if self.keep is None or federation.round % self.keep or kept.exists():
            return False
        kept.parent.mkdir(exist_ok=True)
        os.link(path, kept)
        store = federation.clients.store
        for name, source in (store.paths() if store else {}).items():
            link = kept.parent / CLIENTS / name
            if link not in self._linked:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)  # of a round that did not count
                os.link(source, link)
                self._linked.add(link)
        return True


def _of_packet(packet: Packet) -> tuple[int, str]:
    return packet.num_bytes, chain.digest(packet.payload.numpy().data)


def _states(federation: Federation, clients: Sequence[int] | None = None) -> dict[str, str]:
    """The hashes of the files of the states that clients keep, by name."""
    store = federation.clients.store
    return {name: chain.file_digest(path) for name, path in (store.paths(clients) if store else {}).items()}
