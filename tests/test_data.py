"""Partitions, batches, and the CIFAR files: present, missing, damaged, hostile."""

import os
import pickle
import tarfile
import threading
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_images
from fedpara.data import Dirichlet, FederatedDataModule, Shards, crop_and_flip, iid
from fedpara.data.cifar import CIFAR10, CIFAR100, cifar10, cifar100
from fedpara.data.files import REMEMBERED, Archive, present
from fedpara.data.images import BatchedImages, EpochBatches
from fedpara.data.mnist_small import mnist_small
from fedpara.data.partition import matching_part


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(0, 5), st.sampled_from(["iid", "dirichlet"]), st.integers(2, 7))
def test_partitions_are_disjoint_complete_and_reproducible(num_clients, seed, scheme, num_classes):
    labels = torch.arange(400) % num_classes
    partition = iid if scheme == "iid" else Dirichlet(alpha=0.5)
    parts = partition(labels, num_clients, seed)
    assert len(parts) == num_clients
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(400))
    assert min(map(len, parts)) >= (400 // num_clients if scheme == "iid" else 10)
    assert all(torch.equal(a, b) for a, b in zip(parts, partition(labels, num_clients, seed), strict=True))


@pytest.mark.parametrize("num_clients", [10, 13, 100])
def test_shards_give_two_classes_at_most(num_clients):
    labels = torch.cat([torch.full((size,), c) for c, size in enumerate(range(400, 600, 20))])
    parts = Shards(2)(labels, num_clients, 0)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels)))
    assert max(len(labels[part].unique()) for part in parts) <= 2
    assert max(map(len, parts)) < 2.5 * min(map(len, parts))
    with pytest.raises(ValueError, match=r"classes_per_client=2: 4 clients would leave out .* must be 3 or more"):
        Shards(2)(labels, 4, 0)


def test_matching_part_has_the_clients_proportions_and_is_the_largest():
    own = torch.tensor([0] * 30 + [1] * 10)
    labels = torch.arange(300) % 3
    part = matching_part(own, labels, 0)
    assert labels[part].bincount(minlength=3).tolist() == [100, 33, 0]
    assert torch.equal(part, matching_part(own, labels, 0))
    assert len(matching_part(torch.arange(300) % 3, labels, 0)) == 300


def test_seeds_and_schemes_give_different_partitions():
    labels = torch.arange(1000) % 10
    parts = [p(labels, 10, seed)[0].tolist() for p in (iid, Dirichlet()) for seed in (0, 1)]
    assert len({tuple(part) for part in parts}) == 4


def test_dirichlet_alpha_is_the_skew():
    labels = torch.arange(5000) % 10

    def skew(alpha):
        return np.mean(
            [labels[part].bincount(minlength=10).max() / len(part) for part in Dirichlet(alpha)(labels, 10, 0)]
        )

    assert skew(0.1) > skew(0.5) > skew(100) > 0.1
    assert skew(100) < 0.15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iid(torch.zeros(5), 6, 0), "num_clients=6: needs at least 6 training examples"),
        (lambda: Dirichlet()(torch.zeros(50), 6, 0), "num_clients=6: needs at least 60"),
        (lambda: Dirichlet(1e-4, max_draws=20)(torch.arange(100) % 2, 9, 0), "alpha=0.0001: 20 draws"),
        (lambda: Dirichlet(alpha=0), "alpha"),
    ],
)
def test_partitions_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_crop_and_flip_moves_each_image_as_a_whole():
    """Every output is one of the 81 crops of the padded image or of its mirror image; images differ in their choice."""
    images = torch.arange(1, 1 + 2 * 3 * 8 * 8).view(2, 3, 8, 8).to(torch.uint8)
    same = images[:1].expand(40, -1, -1, -1)
    out = crop_and_flip(same, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(same[0], [4] * 4)
    crops = [padded[:, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
    allowed = {c.numpy().tobytes() for c in crops} | {c.flip(2).contiguous().numpy().tobytes() for c in crops}
    got = [image.numpy().tobytes() for image in out]
    assert set(got) <= allowed
    assert len(set(got)) > 20


def test_batches_are_a_function_of_seed_and_epoch():
    batches = EpochBatches(torch.arange(10, 31), batch_size=8, seed=5)
    first = [(i.tolist(), s) for i, s in batches]
    assert [len(i) for i, _ in first] == [8, 8, 5]
    assert sorted(index for i, _ in first for index in i) == list(range(10, 31))
    assert first == [(i.tolist(), s) for i, s in batches]
    batches.set_epoch(1)
    assert first != [(i.tolist(), s) for i, s in batches]


def test_batches_do_not_depend_on_workers():
    def batches(num_workers):
        data = FederatedDataModule(
            tiny_images, iid, num_clients=2, num_classes=3, in_channels=1, batch_size=8, num_workers=num_workers,
            transform=partial(crop_and_flip, padding=1),
        )  # fmt: skip
        data.setup()
        return list(data.client_dataloader(1, seed=3))

    for (images, labels), (others, names) in zip(batches(0), batches(2), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, names)


def test_normalisation():
    images = tiny_images().train
    pixels, labels = BatchedImages(images, (0.5,), (0.25,))[torch.arange(5), 0]
    torch.testing.assert_close(pixels, (images.pixels[:5] / 255 - 0.5) / 0.25)
    assert torch.equal(labels, images.labels[:5])


def test_caps_take_the_same_examples_for_every_seed_and_shape_is_checked():
    options = {"num_clients": 2, "in_channels": 1, "batch_size": 8, "max_train": 20, "max_test": 9}
    taken = []
    for seed in (0, 1):
        data = FederatedDataModule(tiny_images, iid, num_classes=3, seed=seed, **options)
        data.setup()
        taken.append(data._train.images.pixels)
        assert sum(data.num_examples(client) for client in range(2)) == 20
        assert sum(len(labels) for _, labels in data.test_dataloader()) == 9
    assert torch.equal(*taken)
    with pytest.raises(ValueError, match="num_classes=10: tiny has 3"):
        FederatedDataModule(tiny_images, iid, num_classes=10, **options).setup()


def test_mnist_small_is_real_and_balanced():
    images = mnist_small()
    assert len(images.train) == 4000
    assert len(images.test) == 1000
    assert images.test.labels.bincount().tolist() == [100] * 10
    assert float((images.train.pixels / 255).mean()) == pytest.approx(0.1307, abs=0.005)


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


def test_cifar_layout_is_read(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(20, 3072), dtype=np.uint8)
    archive = write_cifar(tmp_path / "c100", content={"data": pixels, "fine_labels": list(range(20))})
    images = cifar100(str(tmp_path), archive)
    assert images.train.pixels.shape == (20, 3, 32, 32)
    assert torch.equal(images.train.pixels[3].flatten(), torch.from_numpy(pixels[3]))
    assert images.test.labels.tolist() == list(range(20))


def test_checksums_are_verified_once_and_remembered(tmp_path):
    archive = write_cifar(tmp_path / "c100")
    present(archive, tmp_path)
    memory = tmp_path / "c100" / REMEMBERED
    before = memory.stat().st_mtime_ns
    present(archive, tmp_path)
    assert memory.stat().st_mtime_ns == before
    content = bytearray((tmp_path / "c100" / "test").read_bytes())
    content[-100] ^= 1
    (tmp_path / "c100" / "test").write_bytes(content)
    with pytest.raises(ValueError, match=r"test: MD5 is .*, expected .*; delete the file"):
        present(archive, tmp_path)


def test_missing_files_and_no_network_name_folder_and_files(tmp_path):
    archive = write_cifar(tmp_path / "c100")
    os.remove(tmp_path / "c100" / "test")
    with pytest.raises(FileNotFoundError, match=r"c100: missing test, and http.* cannot be fetched .*paths.data_dir"):
        present(archive, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c100"]


def test_download_is_verified_unpacked_and_moved_into_place(tmp_path):
    source = tmp_path / "source"
    archive = write_cifar(source / "c100")
    with tarfile.open(tmp_path / "c100.tar.gz", "w:gz") as tar:
        tar.add(source / "c100", "c100")
    checksum = md5((tmp_path / "c100.tar.gz").read_bytes()).hexdigest()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/c100.tar.gz"
        with pytest.raises(FileNotFoundError, match="cannot be fetched"):
            present(Archive("c100", url, "0" * 32, archive.files), tmp_path / "there")
        folder = present(Archive("c100", url, checksum, archive.files), tmp_path / "there")
        server.shutdown()
    assert {path.name for path in folder.iterdir()} == {"train", "test", REMEMBERED}


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/fedpara-hostile-pickle",)


@pytest.mark.parametrize(
    "content", [Hostile(), {"data": 1}, {"data": np.zeros((2, 5), np.uint8), "fine_labels": [0, 1]}]
)
def test_files_that_are_no_cifar_batch_give_one_line_and_run_nothing(tmp_path, content):
    archive = write_cifar(tmp_path / "c100", content=content)
    with pytest.raises(ValueError, match="train: not a CIFAR batch"):
        cifar100(str(tmp_path), archive)
    assert not os.path.exists("/tmp/fedpara-hostile-pickle")


def test_truncated_file(tmp_path):
    archive = write_cifar(tmp_path / "c100")
    path = tmp_path / "c100" / "train"
    path.write_bytes(path.read_bytes()[:1000])
    files = {"train": md5(path.read_bytes()).hexdigest(), "test": archive.files["test"]}
    with pytest.raises(ValueError, match="not a CIFAR batch"):
        cifar100(str(tmp_path), Archive("c100", archive.url, archive.md5, files))


@pytest.mark.real_data
def test_real_cifar(real_data):
    """Official MD5s, sizes, balance and the means that normalisation uses."""
    for read, archive in ((cifar10, CIFAR10), (cifar100, CIFAR100)):
        images = read(str(real_data), archive)
        assert images.train.pixels.shape == (50_000, 3, 32, 32)
        assert len(set(images.train.labels.bincount().tolist())) == 1
        assert len(images.test) == 10_000
        means = images.train.pixels[::10].float().mean((0, 2, 3)) / 255
        torch.testing.assert_close(means, torch.tensor(images.mean), atol=0.01, rtol=0)
