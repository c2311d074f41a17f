"""Replace every file that the package reads by damaged and hostile ones: each must give one line, or be read correctly.

    python tools/stress/corrupt_files.py 2000 > lines.txt      # so many damaged files per reader; the suite tries a few

No file may run code, cause an error with a stack trace, or make anything write outside of its folder.
"""

import atexit
import collections
import gzip
import io
import json
import os
import pickle
import random
import re
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import numpy as np
import torch
from PIL import Image

from fedpara.algorithms.scaffold import Scaffold
from fedpara.app.audit import Mismatch, verified
from fedpara.app.composition import read_yaml
from fedpara.app.errors import ConfigurationError
from fedpara.app.resume import with_saved_overrides
from fedpara.callbacks import Audit, Checkpoint, RunFolder, restore
from fedpara.data import IID, FederatedDataModule, Normalize
from fedpara.data.files import Archive, present
from fedpara.data.sets.cifar import cifar100
from fedpara.data.sets.cinic10 import CLASSES, cinic10
from fedpara.data.sets.leaf import femnist
from fedpara.data.sets.mnist import IMAGES, LABELS, read_idx
from fedpara.data.sets.shakespeare import shakespeare
from fedpara.files import UnusableFile
from fedpara.runs import AUDIT_LOG, CHECKPOINT, CLIENTS, CONFIG, METRICS, OVERRIDES, SUMMARY, Run
from helpers.federations import make_federation
from helpers.files import LINE, PLAY, idx, leaf_files, write_cifar

DATA_ERRORS = (ValueError, FileNotFoundError)  # train.py shows these in one line while it builds
RUN_ERRORS = (UnusableFile, ConfigurationError)  # and these at any time


@dataclass(frozen=True)
class Reader:
    """Writes good files into a folder, and reads the files that are there later.

    Attributes:
        files: pattern of the files to damage.
    """

    write: Any
    read: Any
    files: str
    errors: tuple = DATA_ERRORS


def trainable(data, num_classes, channels):
    """Take the examples through all checks before training."""
    module = FederatedDataModule(lambda: data, IID(), 1, num_classes, channels, batch_size=4)
    module.setup()
    next(iter(module.client_dataloader(0, 0)))
    next(iter(module.test_dataloader()))


def write_idx(folder):
    generator = np.random.default_rng(0)
    for part in ("train", "t10k"):
        (folder / f"{part}-{IMAGES}").write_bytes(idx(generator.integers(0, 256, (5, 28, 28), np.uint8)))
        (folder / f"{part}-{LABELS}").write_bytes(idx(np.arange(5, dtype=np.uint8)))


def read_cifar(folder):
    """Read with the checksums of the files at hand: otherwise the MD5 check would refuse a damaged file at once."""
    files = {name: md5((folder / "c" / name).read_bytes()).hexdigest() for name in ("train", "test")}
    trainable(cifar100(str(folder), Archive("c", "http://127.0.0.1:9/", "0" * 32, files)), 100, 3)


def write_packed(folder):
    (folder / "femnist").mkdir()
    x = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    np.savez(folder / "femnist" / "a.npz", x=x, y=np.arange(6), writer=np.arange(6) % 2, split=np.arange(6) % 2)


def write_cinic(folder):
    for part in ("train", "test"):
        for number, name in enumerate(CLASSES):
            (folder / "cinic-10" / part / name).mkdir(parents=True)
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "cinic-10" / part / name / "a.png")


def read_cinic(folder):
    cinic10.cache_clear()
    trainable(cinic10(str(folder)), 10, 3)


def write_plays(folder):
    (folder / "shakespeare").mkdir()
    (folder / "shakespeare" / "play.txt").write_text(PLAY + 12 * f"FIRST\t{LINE}SECOND\t{LINE}")


def write_play_archive(folder, kind):
    write_plays(folder)
    with tarfile.open(folder / "shakespeare" / f"plays.tar.{kind}", f"w:{kind}") as tar:
        tar.add(folder / "shakespeare" / "play.txt", "plays/play.txt")
    (folder / "shakespeare" / "play.txt").unlink()


def write_leaf_shakespeare(folder):
    text = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer it."
    leaf_files(folder / "shakespeare", ["HAMLET"], [text[:80], text[1:81]], [text[80], text[81]])


def federation(**options):
    return make_federation(algorithm=Scaffold(), personal=["*2"], num_rounds=2, clients_per_round=5, **options)


def write_run(folder):
    """Copy a finished run, which is made once."""
    if not (made := Path(tempfile.gettempdir()) / f"corrupt-files-{os.getpid()}").is_dir():
        made.mkdir()
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        (made / CONFIG).write_text("seed: 0\nfederation:\n  num_rounds: 2\n")
        (made / OVERRIDES).write_text("- seed=0\n- federation.num_rounds=2\n")
        federation(callbacks=[RunFolder(made, {}), Audit(made), Checkpoint(made)]).fit()
    shutil.copytree(made, folder, dirs_exist_ok=True)


def read_run(folder):
    """Restore as a resume does, then read every client's state."""
    resumed = federation()
    restore(resumed, folder)
    for states in (resumed.personal, resumed.memories):
        for client in states:
            states[client]
    resumed.run_round()


READERS = {
    "CIFAR pickle": Reader(lambda folder: write_cifar(folder / "c", size=4), read_cifar, "c/*"),
    "idx": Reader(
        write_idx, lambda folder: trainable(read_idx("fake", folder, Normalize((0.5,), (0.5,))), 10, 1), "*.gz"
    ),
    "FEMNIST json": Reader(
        lambda folder: leaf_files(folder / "femnist", ["f1", "f2"], [[0.25] * 784, [0.5] * 784], [61, 3]),
        lambda folder: trainable(femnist(str(folder)), 62, 1),
        "femnist/*/*.json",
    ),
    "FEMNIST npz": Reader(write_packed, lambda folder: trainable(femnist(str(folder)), 62, 1), "femnist/*"),
    "Shakespeare json": Reader(
        write_leaf_shakespeare, lambda folder: trainable(shakespeare(str(folder)), 80, None), "shakespeare/*/*.json"
    ),
    "Shakespeare text": Reader(
        write_plays, lambda folder: trainable(shakespeare(str(folder)), 80, None), "shakespeare/*"
    ),
    **{
        f"Shakespeare tar.{kind}": Reader(
            lambda folder, kind=kind: write_play_archive(folder, kind),
            lambda folder: trainable(shakespeare(str(folder)), 80, None),
            "shakespeare/*",
        )
        for kind in ("gz", "xz", "bz2")
    },
    "CINIC png": Reader(write_cinic, read_cinic, "cinic-10/*/*/*.png"),
    "checkpoint": Reader(write_run, read_run, CHECKPOINT, RUN_ERRORS),
    "client states": Reader(write_run, read_run, f"{CLIENTS}/*/*.safetensors", RUN_ERRORS),
    AUDIT_LOG: Reader(write_run, verified, AUDIT_LOG, (Mismatch, ConfigurationError)),
    METRICS: Reader(write_run, lambda folder: Run(folder).rows, METRICS, RUN_ERRORS),
    SUMMARY: Reader(write_run, lambda folder: Run(folder).state, SUMMARY, RUN_ERRORS),
    CONFIG: Reader(write_run, lambda folder: read_yaml(folder / CONFIG, f"run={folder}"), CONFIG, RUN_ERRORS),
    OVERRIDES: Reader(write_run, lambda folder: with_saved_overrides([f"resume={folder}"]), OVERRIDES, RUN_ERRORS),
}


def damaged(content, kind, generator):
    """Bytes as disks, networks and enemies leave them."""
    content = bytearray(content)
    somewhere = generator.randrange(len(content) + 1)
    if kind == "truncated":
        del content[somewhere:]
    if kind == "flipped":
        for _ in range(generator.choice([1, 1, 2, 30])):
            bit = generator.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
    if kind == "a digit changed":
        places = [at for at, byte in enumerate(content) if chr(byte).isdigit()] or [0]
        content[generator.choice(places)] = ord(generator.choice("0123456789-.e"))
    if kind == "large numbers":
        content[somewhere : somewhere + 8] = b"\xff" * 8
    if kind == "grown":
        content += generator.randbytes(generator.choice([1, 100, 100_000]))
    if kind == "repeated":
        content += content[somewhere:]
    if kind == "a piece lost":
        del content[somewhere : somewhere + generator.randrange(1, 50)]
    if kind == "noise":
        content = generator.randbytes(generator.randrange(300))
    return bytes(content)


KINDS = ("truncated", "flipped", "a digit changed", "large numbers", "grown", "repeated", "a piece lost", "noise")


class Hostile:
    """Runs a command where an unpickler lets it."""

    def __reduce__(self):
        return os.system, (f"touch {tempfile.gettempdir()}/fedpara-ran-code",)


def tar_of(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = "" if kind == tarfile.REGTYPE else content.decode()
            tar.addfile(member, io.BytesIO(content) if member.size else None)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def png(mode, size, kind="PNG"):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def tensors(**state):
    """With a checksum that is right: what is wrong is what it holds."""
    from fedpara.storage import write_tensors

    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "x", state, {"progress": '{"round": 1, "total_bytes": 0}'})
        return (Path(folder) / "x").read_bytes()


def leaf_json(x, y):
    return json.dumps({"users": ["f"], "user_data": {"f": {"x": x, "y": y}}}).encode()


PIXELS, FOUR = np.zeros((4, 3072), np.uint8), [0, 1, 2, 3]
ESCAPES = [
    ("../../outside.txt", tarfile.REGTYPE, b"x"),
    ("/tmp/fedpara-outside.txt", tarfile.REGTYPE, b"x"),
    ("a.txt", tarfile.SYMTYPE, b"/etc/passwd"),
    ("a.txt", tarfile.LNKTYPE, b"../../../etc/passwd"),
    ("a.txt", tarfile.SYMTYPE, b"a.txt"),
    ("a.txt", tarfile.CHRTYPE, b""),
    ("a.txt", tarfile.FIFOTYPE, b""),
]
CRAFTED = {  # readers, and contents that are well formed but wrong; each must be refused
    "CIFAR pickle": [
        pickle.dumps(content, protocol)
        for protocol in (2, 4)
        for content in (
            Hostile(), {"data": Hostile()}, [Hostile()], {"data": 1}, [], None, 7, {"data": PIXELS},
            {"data": PIXELS[:, :5], "fine_labels": FOUR}, {"data": PIXELS.astype(float), "fine_labels": FOUR},
            {"data": PIXELS, "fine_labels": FOUR[:3]}, {"data": PIXELS, "fine_labels": [0.5] * 4},
            {"data": PIXELS, "fine_labels": [0, 1, 2, 100]}, {"data": PIXELS, "fine_labels": [0, 1, 2, -1]},
            {"data": PIXELS.astype(object), "fine_labels": FOUR}, {"data": PIXELS[:0], "fine_labels": []},
            {"data": SimpleNamespace(), "fine_labels": FOUR}, {"data": io.BytesIO, "fine_labels": FOUR},
        )
    ] + [b"cos\nsystem\n(S'touch /tmp/fedpara-ran-code'\ntR.", b"c__builtin__\neval\n(S'1'\ntR.", b"]" + b"2" * 30],
    "idx": [
        idx(np.zeros((5, 28, 27), np.uint8)[:, :, 0]), idx(np.zeros((5, 3), np.uint8)), idx(np.full(5, 10, np.uint8)),
        idx(np.zeros((0, 28, 28), np.uint8)), idx(np.zeros((4, 28, 28), np.uint8)), gzip.compress(b""),
    ],
    "FEMNIST json": [
        leaf_json(*pair)
        for pair in (
            ([[0.5] * 783], [1]), ([[2.0] * 784], [1]), ([[0.5] * 784], [62]), ([[0.5] * 784], [-1]), ([], [1]),
            ([[0.5] * 784], ["a"]), (None, 3), ([["a"] * 784], [1]), ([[None] * 784], [1]), ([], []), ({}, {}),
            ([[0.5] * 784], [[1]]), ([[float("nan")] * 784], [1]),
        )
    ] + [b"[" * 100_000, b"{}", b"null", b'{"users": ["a"], "user_data": {}}', b"\xff\xfe", b'{"users": 3}'],
    "FEMNIST npz": [
        npz(**({"x": np.zeros((4, 28, 28), np.uint8), "y": np.arange(4), "writer": np.arange(4),
                     "split": np.arange(4) % 2} | wrong))
        for wrong in (
            {"x": np.zeros((4, 28, 27), np.uint8)}, {"x": np.zeros((4, 28, 28))}, {"y": np.arange(5)},
            {"y": np.full(4, 62)}, {"y": np.full(4, -1)}, {"y": np.array(["a"] * 4)}, {"split": np.full(4, 2)},
            {"split": np.zeros(4, int)}, {"writer": np.arange(3)}, {"y": np.array(3)},
            {"y": np.array([Hostile()] * 4, dtype=object)}, {"writer": np.array(["w"] * 4)},
        )
    ] + [pickle.dumps(Hostile()), png("L", (32, 32))],
    "Shakespeare json": [
        leaf_json(*pair) for pair in ((["a" * 79], ["b"]), (["a" * 80], ["b", "c"]), ([3], ["b"]), (["a" * 80], [3]),
                                      ([], []), ("a" * 80, "b"), ([""], ["b"]))
    ],
    "Shakespeare text": [b"", b"\nACT I\n", b"\nACT I\nFIRST\tshort\n", bytes(range(256)) * 50],
    "Shakespeare tar.gz": [
        b"", tar_of(), tar_of(("b.txt", tarfile.REGTYPE, b"x")), *(tar_of(escape) for escape in ESCAPES),
    ],
    "CINIC png": [
        png("RGB", (31, 32)), png("L", (32, 33)), png("RGB", (32, 32), "JPEG"), png("RGB", (32, 32), "GIF"), b"",
        png("RGB", (2000, 2000)),
    ],
    "checkpoint": [
        b"", tensors(), tensors(a=torch.zeros(3)), pickle.dumps(Hostile()),
        b"\xff" * 8 + b"{}", (10**12).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}",
    ],
    "client states": [
        b"", tensors(), tensors(a=torch.zeros(3)), tensors(**{"layers.1.bias": torch.zeros(1)}),
        pickle.dumps(Hostile()),
    ],
    METRICS: [b"nonsense\n1\n", b"\xff\n", b"round,test/acc\r\nx,1\r\n", b"round\r\n1,2\r\n", b"a\0b\n1\n"],
    SUMMARY: [b"", b"[]", b"3", b"{", b"[" * 100_000, b"\xff"],
    CONFIG: [b"a: [", b"a: !!python/object/apply:os.system ['touch /tmp/fedpara-ran-code']", b"\0", b"a: ${"],
    OVERRIDES: [
        b"a: [", b"- 1", b"3", b"a: 1", b"- {a: 1}", b"- !!python/object/apply:os.system ['true']", b"\xff",
    ],
}  # fmt: skip


def attempt(reader, change, generator):
    """A good folder, one of its files changed by `change(content)`, read; returns the line or None, or raises."""
    with tempfile.TemporaryDirectory() as around:
        folder = Path(around) / "inside" / "folder"
        folder.mkdir(parents=True)
        reader.write(folder)
        path = generator.choice(sorted(folder.glob(reader.files)))
        path.write_bytes(change(path.read_bytes()))
        line = None
        try:
            reader.read(folder)
        except reader.errors as error:
            line = str(error).replace(str(folder), "<folder>")
        ran = [Path("/tmp/fedpara-ran-code"), Path(tempfile.gettempdir()) / "fedpara-ran-code"]
        outside = [Path("/tmp/fedpara-outside.txt"), *(p for p in Path(around).iterdir() if p.name != "inside")]
        outside += [p for p in (Path(around) / "inside").iterdir() if p.name != "folder"]
        assert not any(p.exists() for p in [*ran, *outside]), "ran code, or wrote outside its folder"
        assert line is None or ("\n" not in line and len(line) < 1000), line
    return line


def unpacked(*members):
    """The line of a download whose archive, with a right checksum, holds `members`; what it must not leave."""
    with tempfile.TemporaryDirectory() as around:
        archive, folder = Path(around) / "x.tar.gz", Path(around) / "inside"
        archive.write_bytes(tar_of(*members))
        source = Archive("c", archive.as_uri(), md5(archive.read_bytes()).hexdigest(), {"train": "0" * 32})
        retrieve = SimpleNamespace(retrieve=lambda *_, **__: str(archive))
        before, sys.modules["fedpara.data.files"].pooch = sys.modules["fedpara.data.files"].pooch, retrieve
        try:
            present(source, folder)
        except DATA_ERRORS as error:
            assert {path.name for path in Path(around).iterdir()} <= {"x.tar.gz", "inside"}
            assert not Path("/tmp/fedpara-outside.txt").exists()
            return str(error)
        finally:
            sys.modules["fedpara.data.files"].pooch = before
    raise AssertionError("accepted")


def main(number, seed=0):
    """Every crafted file, and `number` damaged ones a reader; prints each reader's lines, by kind."""
    generator, wrong, total = random.Random(seed), 0, 0
    for name, reader in READERS.items():
        changes = [("crafted", lambda _, content=content: content) for content in CRAFTED.get(name, [])]
        for _ in range(number):
            kind = generator.choice(KINDS)
            changes.append((kind, lambda content, kind=kind: damaged(content, kind, generator)))
        lines = collections.Counter()
        for kind, change in changes:
            total += 1
            try:
                line = attempt(reader, change, generator) or ("ACCEPTED" if kind == "crafted" else "read")
            except Exception as error:
                line = f"ESCAPED {kind} {type(error).__name__}: {error}"
            wrong += line.startswith(("ESCAPED", "ACCEPTED"))
            lines[re.sub(r"-?\d[\d.e+-]*|'[^']*'|\\x\w\w", "#", line)[:110]] += 1
        print(f"{name}: {len(changes)} tried, {lines['read']} read all the same", flush=True)
        for line, count in lines.most_common():
            print(f"  {count} x {line}")
    print(f"{total} files tried, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]))))
