"""Small data sets in the layouts of large ones."""

import gzip
import json
import pickle
import struct
from hashlib import md5

import numpy as np

from fedpara.data.files import Archive

PLAY = "\tTHE PLAY\n\nFIRST\tking of nothing.\n\nACT I\n\nSCENE I\tA place.\n\n\t[Enter FIRST]\n\n"
LINE = "Words, words, [aside] words; and what is more than words?\n\tMore words, to be sure, at any length.\n\n"


def write_cifar(folder, size=20, content=None):
    """A CIFAR-100-like folder; returns the archive that describes it."""
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        pixels = np.random.default_rng(0).integers(256, size=(size, 3072), dtype=np.uint8)
        batch = {"data": pixels, "fine_labels": [i % 100 for i in range(size)]}
        data = pickle.dumps(batch if content is None else content, protocol=2)
        (folder / name).write_bytes(data)
    files = {name: md5((folder / name).read_bytes()).hexdigest() for name in ("train", "test")}
    return Archive(folder.name, "http://127.0.0.1:9/absent.tar.gz", "0" * 32, files)


def idx(values):
    """An idx file of unsigned bytes."""
    return gzip.compress(
        struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    )


def leaf_files(folder, users, x, y):
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        content = {"users": users, "num_samples": [len(y)] * len(users)}
        content["user_data"] = {user: {"x": x, "y": y} for user in users}
        (folder / part / "all_data_0.json").write_text(json.dumps(content))
