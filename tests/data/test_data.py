"""Partitions, batches, and the CIFAR files: present, missing, damaged, hostile."""

import gzip
import json
import os
import pickle
import re
import subprocess
import tarfile
import threading
from dataclasses import replace
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedpara.data import IID, CropAndFlip, DataSet, Dirichlet, Examples, FederatedDataModule, Natural, Normalize, Shards
from fedpara.data.examples import Batches, EpochBatches
from fedpara.data.files import REMEMBERED, Archive, Loose, present
from fedpara.data.partition import matching_part
from fedpara.data.sets.cifar import CIFAR10, CIFAR100, cifar10, cifar100
from fedpara.data.sets.cinic10 import CLASSES, cinic10
from fedpara.data.sets.leaf import femnist, leaf, read_classes, read_images
from fedpara.data.sets.mnist import IMAGES, LABELS, MNIST, mnist, read_idx
from fedpara.data.sets.mnist_small import mnist_small
from fedpara.data.sets.shakespeare import CHARACTERS, shakespeare, speeches
from helpers import SHARED_DATA
from helpers.federations import tiny_images
from helpers.files import LINE, PLAY, idx, leaf_files, write_cifar


def labelled(labels):
    """Examples of which only the labels matter."""
    return Examples(labels, labels)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(0, 5), st.sampled_from(["iid", "dirichlet", "shards"]), st.integers(2, 7))
def test_partitions_are_disjoint_complete_and_reproducible(num_clients, seed, scheme, num_classes):
    labels = torch.arange(400) % num_classes
    most_classes = -(-num_classes // num_clients)
    partition = {"iid": IID(), "dirichlet": Dirichlet(alpha=0.5), "shards": Shards(most_classes)}[scheme]
    parts = partition(labelled(labels), num_clients, seed)
    assert len(parts) == num_clients
    assert torch.equal(torch.cat(list(parts)).sort().values, torch.arange(400))
    assert min(map(len, parts)) >= (400 // num_clients if scheme == "iid" else 10)
    assert scheme != "shards" or max(len(labels[part].unique()) for part in parts) <= most_classes
    assert all(torch.equal(a, b) for a, b in zip(parts, partition(labelled(labels), num_clients, seed), strict=True))


@pytest.mark.parametrize("num_clients", [10, 13, 100])
def test_shards_give_two_classes_at_most(num_clients):
    labels = torch.cat([torch.full((size,), c) for c, size in enumerate(range(400, 600, 20))])
    parts = Shards(2)(labelled(labels), num_clients, 0)
    assert torch.equal(torch.cat(list(parts)).sort().values, torch.arange(len(labels)))
    assert max(len(labels[part].unique()) for part in parts) <= 2
    assert max(map(len, parts)) < 2.5 * min(map(len, parts))
    with pytest.raises(ValueError, match=r"classes_per_client=2: 4 clients would leave out .* must be 3 or more"):
        Shards(2)(labelled(labels), 4, 0)


def test_matching_part_has_the_clients_proportions_and_is_the_largest():
    own = torch.tensor([0] * 30 + [1] * 10)
    labels = torch.arange(300) % 3
    part = matching_part(own, labels, 0)
    assert labels[part].bincount(minlength=3).tolist() == [100, 33, 0]
    assert torch.equal(part, matching_part(own, labels, 0))
    assert len(matching_part(torch.arange(300) % 3, labels, 0)) == 300
    with pytest.raises(ValueError, match="none of the 300 test examples is of a client's classes, 3, 5; take"):
        matching_part(torch.tensor([3, 5, 5]), labels, 0)


@given(st.integers(1, 40), st.integers(0, 100), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_iid_parts_are_the_random_order_cut_into_equal_parts(num_clients, more, seed):
    train = labelled(torch.zeros(num_clients + more, dtype=torch.int64))
    order = np.random.default_rng(seed).permutation(len(train))
    expected = [np.sort(part).tolist() for part in np.array_split(order, num_clients)]
    parts = IID()(train, num_clients, seed)
    assert [part.tolist() for part in parts] == expected
    assert [parts[client].tolist() for client in range(num_clients)] == expected


def test_many_clients_take_little_more_memory_than_their_indices():
    def data_set():
        data, many = tiny_images(), torch.arange(40_000) % 60
        return replace(data, train=data.train[many])

    data = FederatedDataModule(data_set, IID(), num_clients=10_000, num_classes=3, in_channels=1, batch_size=3)
    data.setup()
    assert len(pickle.dumps(data.parts)) < 8 * 40_000 + 20 * 10_000
    assert data.clients_with_a_lone_example() == list(range(10_000))


def test_seeds_and_schemes_give_different_partitions():
    labels = torch.arange(1000) % 10
    parts = [p(labelled(labels), 10, seed)[0].tolist() for p in (IID(), Dirichlet()) for seed in (0, 1)]
    assert len({tuple(part) for part in parts}) == 4


def test_dirichlet_alpha_is_the_skew():
    labels = torch.arange(5000) % 10

    def skew(alpha):
        return np.mean(
            [
                labels[part].bincount(minlength=10).max() / len(part)
                for part in Dirichlet(alpha)(labelled(labels), 10, 0)
            ]
        )

    assert skew(0.1) > skew(0.5) > skew(100) > 0.1
    assert skew(100) < 0.15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: IID()(labelled(torch.zeros(5)), 6, 0), "num_clients=6: needs at least 6 training examples"),
        (lambda: Dirichlet()(labelled(torch.zeros(50)), 6, 0), "num_clients=6: needs at least 60"),
        (lambda: Dirichlet(1e-4, max_draws=20)(labelled(torch.arange(100) % 2), 9, 0), "alpha=0.0001: 20 draws"),
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
    transform = CropAndFlip()
    out = transform(same, transform.draw(40, torch.Generator().manual_seed(0)))
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


def test_no_epoch_of_any_seed_has_the_batches_of_another():
    """Seeds that follow each other too: seed 5 in its second epoch is not seed 6 in its first."""
    orders, augmented = [], []
    for seed in (5, 6, 7):
        batches = EpochBatches(torch.arange(50), batch_size=10, seed=seed)
        for epoch in range(3):
            batches.set_epoch(epoch)
            indices, seeds = zip(*batches, strict=True)
            orders.append(tuple(torch.cat(indices).tolist()))
            augmented += seeds
    assert len(set(orders)) == 9
    assert len(set(augmented)) == 9 * 5


def test_batches_do_not_depend_on_workers():
    def batches(num_workers):
        data = FederatedDataModule(
            tiny_images, IID(), num_clients=2, num_classes=3, in_channels=1, batch_size=8, num_workers=num_workers,
            transform=CropAndFlip(padding=1),
        )  # fmt: skip
        data.setup()
        return list(data.client_dataloader(1, seed=3))

    for (images, labels), (others, names) in zip(batches(0), batches(2), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, names)


def test_normalisation():
    images = tiny_images().train
    pixels, labels = Batches(images, Normalize((0.5,), (0.25,)))[torch.arange(5), 0]
    torch.testing.assert_close(pixels, (images.inputs[:5] / 255 - 0.5) / 0.25)
    assert torch.equal(labels, images.labels[:5])


def test_caps_take_the_same_examples_for_every_seed_and_shape_is_checked():
    options = {"num_clients": 2, "in_channels": 1, "batch_size": 8, "max_train": 20, "max_test": 9}
    taken = []
    for seed in (0, 1):
        data = FederatedDataModule(tiny_images, IID(), num_classes=3, seed=seed, **options)
        data.setup()
        taken.append(data.examples[0].inputs)
        assert sum(data.num_examples(client) for client in range(2)) == 20
        assert sum(len(labels) for _, labels in data.test_dataloader()) == 9
    assert torch.equal(*taken)
    with pytest.raises(ValueError, match="num_classes=10: tiny has 3"):
        FederatedDataModule(tiny_images, IID(), num_classes=10, **options).setup()


def test_a_range_of_classes_is_labelled_from_zero():
    options = {"partition": IID(), "num_clients": 2, "in_channels": 1, "batch_size": 8}
    whole = FederatedDataModule(mnist_small, num_classes=10, **options)
    data = FederatedDataModule(mnist_small, class_range=(4, 7), num_classes=3, **options)
    for module in (whole, data):
        module.setup()
    for part, of_all in zip(data.examples, whole.examples, strict=True):
        chosen = (of_all.labels >= 4) & (of_all.labels < 7)
        assert torch.equal(part.inputs, of_all.inputs[chosen])
        assert torch.equal(part.labels, of_all.labels[chosen] - 4)
    for wrong in ((7, 4), (4, 11)):
        message = rf"class_range=\[{wrong[0]}, {wrong[1]}\]: must be a first class and a later end"
        with pytest.raises(ValueError, match=message):
            FederatedDataModule(mnist_small, class_range=wrong, num_classes=3, **options).setup()


def test_mnist_small_is_real_and_balanced():
    images = mnist_small()
    assert len(images.train) == 4000
    assert len(images.test) == 1000
    assert images.test.labels.bincount().tolist() == [100] * 10
    assert float((images.train.inputs / 255).mean()) == pytest.approx(0.1307, abs=0.005)


def test_cifar_layout_is_read(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(20, 3072), dtype=np.uint8)
    archive = write_cifar(tmp_path / "c100", content={"data": pixels, "fine_labels": list(range(20))})
    images = cifar100(str(tmp_path), archive)
    assert images.train.inputs.shape == (20, 3, 32, 32)
    assert torch.equal(images.train.inputs[3].flatten(), torch.from_numpy(pixels[3]))
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
    archive = replace(archive, url="http://127.0.0.1:9/c100.tar.gz")  # nobody listens there
    with pytest.raises(FileNotFoundError) as caught:
        present(archive, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'c100'}: missing test, and http://127.0.0.1:9/c100.tar.gz cannot be fetched (no connection to "
        "127.0.0.1:9); put the files there or set paths.data_dir (or DATA_DIR)"
    )
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
        lost = Archive("c100", url.replace("c100", "c10"), checksum, archive.files)
        with pytest.raises(FileNotFoundError, match=rf"\(127.0.0.1:{server.server_port} answers 404 File not found\)"):
            present(lost, tmp_path / "there")
        with pytest.raises(FileNotFoundError, match="cannot be fetched"):
            present(Archive("c100", url, "0" * 32, archive.files), tmp_path / "there")
        folder = present(Archive("c100", url, checksum, archive.files), tmp_path / "there")
        server.shutdown()
    assert {path.name for path in folder.iterdir()} == {"train", "test", REMEMBERED}


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar"])
def test_an_archive_that_lies_there_packed_is_unpacked_and_not_fetched(tmp_path, suffix):
    source = tmp_path / "source"
    archive = write_cifar(source / "c100")  # its home is one that cannot be reached
    packed = tmp_path / f"absent{suffix}"
    packed.write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(ValueError, match=rf"absent{suffix}: not an archive of c100"):
        present(archive, tmp_path)
    with tarfile.open(packed, "w:gz" if suffix == ".tar.gz" else "w") as tar:
        tar.add(source / "c100", "c100")
    assert len(cifar100(str(tmp_path), archive).train) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == [packed.name, "c100", "source"]
    (tmp_path / "c100" / "train").write_bytes(b"")
    with pytest.raises(ValueError, match="train: MD5 is"):
        present(archive, tmp_path)


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


def owned(owners):
    """Examples of which only labels and owners matter; labels repeat 0, 1, 2."""
    labels = torch.arange(len(owners)) % 3
    return Examples(labels, labels, torch.tensor(owners))


@given(st.lists(st.integers(0, 9), min_size=30, max_size=90), st.integers(0, 3), st.integers(1, 4))
def test_natural_clients_are_owners(owners, seed, least):
    train, (values, sizes) = owned(owners), np.unique(owners, return_counts=True)
    able = values[sizes >= least]
    parts = Natural(least)(train, len(able), seed)
    assert [sorted(set(train.owners[part].tolist())) for part in parts] == [[owner] for owner in able]
    assert sorted(index for part in parts for index in part.tolist()) == [i for i, o in enumerate(owners) if o in able]
    few = Natural(least)(train, max(1, len(able) - 2), seed)
    assert {tuple(part.tolist()) for part in few} <= {tuple(part.tolist()) for part in parts}
    with pytest.raises(ValueError, match=rf"num_clients={len(able) + 1}: must be at most {len(able)}"):
        Natural(least)(train, len(able) + 1, seed)


def test_a_natural_client_is_tested_on_its_owner():
    train, test = owned([5] * 20 + [7] * 20), owned([7, 5, 7, 5, 5, 9, 9, 9])
    five, seven = Natural(1)(train, 2, 0)
    assert Natural(1).test_part(train[five], test, 0).tolist() == [1, 3, 4]
    assert Natural(1).test_part(train[seven], test, 0).tolist() == [0, 2]
    assert len(Natural(1).test_part(train[seven], owned([5] * 9), 0)) > 5  # it has none: by its labels
    with pytest.raises(ValueError, match="partition=natural: the data set names no owners"):
        Natural(1)(labelled(torch.arange(9)), 3, 0)


def test_local_fraction_cuts_each_client_alike():
    def parts(fraction):
        data = FederatedDataModule(
            tiny_images, IID(), num_clients=3, num_classes=3, in_channels=1, batch_size=8, local_fraction=fraction
        )
        data.setup()
        return data.parts

    for cut, whole in zip(parts(0.2), parts(1.0), strict=True):
        assert len(cut) == 4
        assert len(whole) == 20
        assert set(cut.tolist()) < set(whole.tolist())
        assert torch.equal(cut, cut.sort().values)


@pytest.mark.parametrize("partition", [IID(), Shards(2)], ids=["iid", "shards"])
def test_validation_examples_are_tested_and_not_trained_on_and_no_test_example_is(partition):
    def read():  # each input is its own number, and those of the test set are 100 and more
        numbers = torch.arange(60).to(torch.uint8)[:, None, None, None].expand(60, 1, 4, 4)
        labels = torch.arange(60) % 3
        return DataSet(
            "numbers", Examples(numbers, labels), Examples(numbers + 100, labels), 3, Normalize((0.0,), (1.0,))
        )

    def numbers(loader):
        return sorted((255 * torch.cat([images[:, 0, 0, 0] for images, _ in loader])).round().int().tolist())

    def split(**options):
        data = FederatedDataModule(read, partition, 3, 3, 1, batch_size=100, local_fraction=0.5, **options)
        data.setup()
        trained = [numbers(data.client_dataloader(client, seed=0)) for client in range(3)]
        return trained, [numbers(data.test_dataloader(client)) for client in range(3)], numbers(data.test_dataloader())

    before, _, _ = split()
    trained, own, tested = split(validation=0.25)
    for whole, rest, held in zip(before, trained, own, strict=True):
        assert len(held) == round(0.25 * len(whole))
        assert sorted(rest + held) == whole
    assert tested == sorted(own[0] + own[1] + own[2])
    assert max(tested) < 100
    with pytest.raises(ValueError, match=r"validation=0.99: leaves no training example to a client that has \d+"):
        split(validation=0.99)


def test_idx_files_are_read_and_broken_ones_refused(tmp_path):
    generator = np.random.default_rng(0)
    for part, size in (("train", 7), ("t10k", 3)):
        (tmp_path / f"{part}-{IMAGES}").write_bytes(idx(generator.integers(0, 256, (size, 28, 28), np.uint8)))
        (tmp_path / f"{part}-{LABELS}").write_bytes(idx(np.arange(size, dtype=np.uint8)))
    data = read_idx("fake", tmp_path, Normalize((0.5,), (0.5,)))
    assert data.train.inputs.shape == (7, 1, 28, 28)
    assert data.test.labels.tolist() == [0, 1, 2]
    expected = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
    assert np.array_equal(data.train.inputs[:, 0].numpy(), expected)
    whole = (tmp_path / f"t10k-{IMAGES}").read_bytes()
    for broken in (
        b"",
        whole[:-20],
        gzip.compress(b"\0\0\x0d\1" + bytes(8)),
        gzip.compress(gzip.decompress(whole)[:-1]),
    ):
        (tmp_path / f"t10k-{IMAGES}").write_bytes(broken)
        with pytest.raises(ValueError, match="not an idx file of bytes"):
            read_idx("fake", tmp_path, Normalize((0.5,), (0.5,)))


def test_mnist_is_verified_found_in_either_folder_and_missed_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("fedpara.data.sets.mnist.MNIST", replace(MNIST, url="http://127.0.0.1:9/"))
    with pytest.raises(FileNotFoundError, match=r"MNIST/raw: missing train-images.*cannot be fetched"):
        mnist(str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for name in MNIST.files:
        (tmp_path / "mnist" / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"mnist/train-images.*: MD5 is .*, expected f68b3c2d"):
        mnist(str(tmp_path))


def fake_mnist(folder, compress):
    """A folder in MNIST's layout, and the source that describes it as its home has it: gzipped."""
    folder.mkdir(parents=True)
    generator, files, contents = np.random.default_rng(0), {}, {}
    for part, size in (("train", 7), ("t10k", 3)):
        images = generator.integers(0, 256, (size, 28, 28), np.uint8)
        for kind, values in ((IMAGES, images), (LABELS, np.arange(size, dtype=np.uint8))):
            packed, name = idx(values), f"{part}-{kind}"
            files[name] = md5(packed).hexdigest()
            contents[name] = md5(gzip.decompress(packed)).hexdigest()
            compress(folder / name, gzip.decompress(packed))
    return Loose(folder.name, "http://127.0.0.1:9/", files, contents)


CONTAINERS = {
    "without gz": lambda path, content: path.with_suffix("").write_bytes(content),
    "compressed anew": lambda path, content: path.write_bytes(gzip.compress(content, 1)),
    "unpacked under the name of gz": lambda path, content: path.write_bytes(content),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_of_idx_files_the_content_counts_and_not_the_container(tmp_path, container):
    source = fake_mnist(tmp_path / "raw", CONTAINERS[container])
    folder = present(source, tmp_path)
    data = read_idx("fake", folder, Normalize((0.5,), (0.5,)))
    assert data.test.labels.tolist() == [0, 1, 2]
    before = (folder / REMEMBERED).stat().st_mtime_ns
    present(source, tmp_path)
    assert (folder / REMEMBERED).stat().st_mtime_ns == before
    damaged = sorted(folder.glob("train-labels*"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"{damaged.name}: MD5 is .*; delete the file to fetch it again"):
        present(source, tmp_path)


def test_femnist_in_leafs_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"femnist/train: holds no \*.json; make them with LEAF"):
        femnist(str(tmp_path))
    leaf_files(tmp_path / "femnist", ["f1", "f2"], [[0.0] * 783 + [1.0], [0.2] * 784], [61, 3])
    data = femnist(str(tmp_path))
    assert data.train.inputs.shape == (4, 1, 28, 28)
    assert data.train.inputs[0].flatten()[-2:].tolist() == [0, 255]
    assert data.train.labels.tolist() == [61, 3, 61, 3]
    assert data.train.owners.tolist() == data.test.owners.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("x", "y"), [([[0.5] * 783], [1]), ([[2.0] * 784], [1]), ([[0.5] * 784], [62]), ([[0.5] * 784], [1, 2]), (None, 3)]
)
def test_what_is_not_femnist_is_refused(tmp_path, x, y):
    (tmp_path / "train").mkdir()
    content = {"users": ["f1"], "user_data": {"f1": {"x": x, "y": y}}}
    (tmp_path / "train" / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a.json: not a file of LEAF"):
        leaf(tmp_path, read_images, read_classes(62), "")


def test_two_generations_of_leaf_files_in_one_folder_are_one_line(tmp_path):
    folder = tmp_path / "femnist"
    leaf_files(folder, ["f1", "f2"], [[0.2] * 784], [3])
    (folder / "train" / "all_data_1.json").write_text((folder / "train" / "all_data_0.json").read_text())
    with pytest.raises(ValueError, match=r"train/all_data_1.json: user f1 is in all_data_0.json too; all files must"):
        femnist(str(tmp_path))


def test_several_packed_femnists_are_one_line(tmp_path):
    (tmp_path / "femnist").mkdir()
    for name in "ab":
        np.savez(
            tmp_path / "femnist" / f"{name}.npz", x=np.zeros((2, 28, 28), np.uint8), y=np.arange(2),
            writer=np.arange(2), split=np.arange(2),
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"femnist: holds a\.npz and b\.npz; keep one npz"):
        femnist(str(tmp_path))
    (tmp_path / "femnist" / "b.npz").rename(tmp_path / "femnist" / "._a.npz")
    assert len(femnist(str(tmp_path)).train) == 1


def test_empty_leaf_files(tmp_path):
    """One without users adds nothing; one without a byte was never written to its end; nothing at all is no data."""
    folder = tmp_path / "femnist"
    leaf_files(folder, ["f1", "f2"], [[0.2] * 784], [3])
    (folder / "train" / "more.json").write_text(json.dumps({"users": [], "user_data": {}}))
    assert len(femnist(str(tmp_path)).train) == 2
    (folder / "train" / "more.json").write_bytes(b"")
    with pytest.raises(ValueError, match=r"more.json: not a file of LEAF .ValueError: the file is empty"):
        femnist(str(tmp_path))
    for path in (folder / "train").iterdir():
        path.write_text(json.dumps({"users": ["f1"], "user_data": {"f1": {"x": [], "y": []}}} if "0" in path.name else
                                   {"users": [], "user_data": {}}))  # fmt: skip
    with pytest.raises(ValueError, match=r"train: its 2 \*.json files hold no examples"):
        femnist(str(tmp_path))


def test_leaf_files_are_utf_8_wherever_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "latin-1")
    monkeypatch.setattr("io.text_encoding", lambda *_: "latin-1")
    text = "é" * 80
    leaf_files(tmp_path / "shakespeare", ["HAMLET"], [text], ["e"])
    for path in (tmp_path / "shakespeare").rglob("*.json"):
        content = json.loads(path.read_bytes())
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content, ensure_ascii=False).encode())
    assert "".join(CHARACTERS[i] for i in shakespeare(str(tmp_path)).train.inputs[0]) == 80 * " "


def test_what_macos_leaves_beside_files_is_not_read(tmp_path):
    leaf_files(tmp_path / "femnist", ["f1"], [[0.2] * 784], [3])
    (tmp_path / "femnist" / "train" / "._all_data_0.json").write_bytes(b"\0\5\x16\7Mac OS X")
    assert len(femnist(str(tmp_path)).train) == 1
    folder = tmp_path / "shakespeare"
    folder.mkdir()
    (folder / "play.txt").write_text(PLAY + 12 * f"FIRST\t{LINE}")
    (folder / "._play.txt").write_bytes(b"\0\5\x16\7\nACT I\nNOBODY\tsays this.\n")
    (folder / "._plays.tar").write_bytes(b"\0\5\x16\7")
    with tarfile.open(folder / "plays.tar", "w") as tar:
        tar.add(folder / "._play.txt", "._other.txt")
    assert set(speeches(folder)) == {"play/FIRST"}


def test_shakespeare_from_plays(tmp_path):
    """Directions, headings and the list of persons are left out; test windows share no character with training."""
    folder = tmp_path / "shakespeare"
    folder.mkdir()
    (folder / "play.txt").write_text(PLAY + 12 * f"FIRST\t{LINE}SECOND\t{LINE}")
    roles = speeches(folder)
    assert set(roles) == {"play/FIRST", "play/SECOND"}
    said = "Words, words,  words; and what is more than words?\nMore words, to be sure, at any length.\n"
    assert "".join(roles["play/FIRST"]) == 12 * said
    data = shakespeare(str(tmp_path))
    text = "".join(CHARACTERS[i] for i in data.train.inputs[0]) + CHARACTERS[data.train.labels[0]]
    assert text == said[:81]
    assert len(data.train) == 2 * (round(0.9 * 12 * len(said)) - 80)
    assert data.train.owners.unique().tolist() == data.test.owners.unique().tolist() == [0, 1]
    assert data.prepare(data.train.inputs[:2]).dtype == torch.int64


ACTS = "ACT I\n\nSCENE I\tA street.\n\nROMEO\tFirst.\n\nACT II\n\nSCENE\tA hall.\n\nROMEO\tSecond.\n"


@pytest.mark.parametrize("title", ["", "\ufeff", "A play\n", "A play\nROMEO\tof no house\n\n"])
def test_a_plays_first_act_is_read_whatever_comes_before(tmp_path, title):
    (tmp_path / "play.txt").write_text(title + ACTS)
    assert speeches(tmp_path) == {"play/ROMEO": ["First.\n", "Second.\n"]}


def test_a_file_may_hold_the_later_acts_alone(tmp_path):
    (tmp_path / "play.txt").write_text("A play\n\nACT IV\n\nROMEO\tFourth.\n")
    assert speeches(tmp_path) == {"play/ROMEO": ["Fourth.\n"]}


def test_roles_whose_names_begin_as_headings_speak(tmp_path):
    names = ["ACTOR", "SCENESHIFTER", "SCENE-PAINTER"]
    (tmp_path / "play.txt").write_text("A play\n" + ACTS + "".join(f"\n{name}\tI too.\n" for name in names))
    assert set(speeches(tmp_path)) == {"play/ROMEO", *(f"play/{name}" for name in names)}


def test_shakespeare_in_leafs_layout_equals_its_plays(tmp_path):
    text = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer it."
    leaf_files(tmp_path / "shakespeare", ["HAMLET"], [text[:80], text[1:81]], [text[80], text[81]])
    data = shakespeare(str(tmp_path))
    assert "".join(CHARACTERS[i] for i in data.train.inputs[1]) == text[1:81]
    assert [CHARACTERS[i] for i in data.test.labels] == [text[80], text[81]]
    with pytest.raises(FileNotFoundError, match="shakespeare/train: holds no"):
        shakespeare(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_plays_in_either_encoding_and_with_any_line_ends(tmp_path, encoding, packed, newline):
    folder, others = (
        tmp_path / "shakespeare",
        "Ça, Père? naïve words, in any encoding that there is, and of any length at all.",
    )
    folder.mkdir()
    text = (PLAY + 12 * f"FIRST\t{others}\n\n").replace("\n", newline).encode(encoding)
    (folder / "play.txt").write_bytes(text)
    if packed:
        with tarfile.open(folder / "plays.tar.gz", "w:gz") as tar:
            tar.add(folder / "play.txt", "play.txt")
        (folder / "play.txt").unlink()
    assert "".join(speeches(folder)["play/FIRST"]) == 12 * f"{others}\n"
    read = "".join(CHARACTERS[i] for i in shakespeare(str(tmp_path)).train.inputs[0])
    assert read == re.sub("[Çèï]", " ", others + "\n" + others)[:80]


def test_characters_of_no_class_are_spaces_wherever_they_lie(tmp_path):
    said = ("a—b“c”…d😀e\ud800f ÿ\x80 Ā" + 80 * "x")[:80]
    leaf_files(tmp_path / "shakespeare", ["HAMLET"], [said], ["—"])
    data = shakespeare(str(tmp_path))
    read = "".join(CHARACTERS[i] for i in data.train.inputs[0])
    assert read == "a b c  d e f     " + said[17:]
    assert CHARACTERS[data.train.labels[0]] == " "


def test_a_play_in_two_files_is_one_line(tmp_path):
    (tmp_path / "more").mkdir()
    for folder in (tmp_path, tmp_path / "more"):
        (folder / "play.txt").write_text(PLAY + f"FIRST\t{LINE}")
    with pytest.raises(ValueError, match=r"play.txt: play is in .*play.txt too; keep one of them"):
        speeches(tmp_path)


def test_cinic10_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cinic-10: no such folder; unpack CINIC-10.tar.gz"):
        cinic10(str(tmp_path))
    for part in ("train", "test"):
        for number, name in enumerate(CLASSES):
            (tmp_path / "cinic-10" / part / name).mkdir(parents=True)
            mode = "L" if name == "cat" else "RGB"
            Image.new(mode, (32, 32), 20 * number).save(tmp_path / "cinic-10" / part / name / "a.png")
    (tmp_path / "cinic-10" / "train" / "dog" / "._a.png").write_bytes(b"\0\5\x16\7Mac OS X")
    data = cinic10(str(tmp_path))
    assert data.train.inputs.shape == (10, 3, 32, 32)
    assert data.train.inputs[3].unique().tolist() == [60]
    assert data.train.labels.tolist() == list(range(10))
    cinic10.cache_clear()
    Image.new("RGB", (31, 32)).save(tmp_path / "cinic-10" / "test" / "dog" / "a.png")
    with pytest.raises(ValueError, match=r"dog/a.png: not a CINIC-10 image .*31 x 32 pixels, expected 32 x 32"):
        cinic10(str(tmp_path))
    (tmp_path / "cinic-10" / "test" / "dog" / "a.png").write_bytes(b"PNG")
    with pytest.raises(ValueError, match=r"dog/a.png: not a CINIC-10 image .UnidentifiedImageError"):
        cinic10(str(tmp_path))


def unpack(archive, folder):
    subprocess.run(["tar", "xf", archive, "-C", folder], check=True)


@pytest.mark.slow
@pytest.mark.real_data
def test_real_mnist_femnist_shakespeare_and_cinic10s_layout(tmp_path):
    if not (SHARED_DATA / "femnist").is_dir():
        pytest.skip("the real data sets are not at hand")
    digits = mnist(str(SHARED_DATA))
    assert (len(digits.train), len(digits.test)) == (60_000, 10_000)
    assert digits.prepare(digits.train.inputs).mean().abs() < 0.001
    assert not (SHARED_DATA / "mnist" / REMEMBERED).exists()  # it is read-only
    letters = femnist(str(SHARED_DATA))
    assert len(letters.train) == 41_495
    assert len(Natural(10)(letters.train, 200, 0)) == 200
    assert letters.prepare(letters.train.inputs[::50]).mean().abs() < 0.05
    subprocess.run(
        ["tar", "xf", SHARED_DATA / "femnist" / "leaf_json_arakotom_flic.tar.xz", "-C", tmp_path], check=True
    )
    (tmp_path / "arakotom+flic").rename(tmp_path / "femnist")
    assert femnist(str(tmp_path)).train.owners.unique().numel() == 110
    (tmp_path / "shakespeare").mkdir()
    unpack(SHARED_DATA / "shakespeare" / "moby_plays.tar.xz", tmp_path)
    os.replace(tmp_path / "moby_plays" / "macbeth.txt", tmp_path / "shakespeare" / "macbeth.txt")
    assert {"macbeth/MACBETH", "macbeth/LADY MACBETH", "macbeth/First Witch"} <= set(speeches(tmp_path / "shakespeare"))
    unpack(SHARED_DATA / "cinic10_layout_fixture.tar.xz", tmp_path)
    (tmp_path / "cinic10_layout_fixture").rename(tmp_path / "CINIC-10")
    assert cinic10(str(tmp_path)).train.labels.bincount().tolist() == [40] * 10


@pytest.mark.slow  # the files are restored first
@pytest.mark.real_data
def test_real_cifar(real_data):
    """Official MD5s, sizes, balance and the means that normalisation uses."""
    for read, archive in ((cifar10, CIFAR10), (cifar100, CIFAR100)):
        images = read(str(real_data), archive)
        assert images.train.inputs.shape == (50_000, 3, 32, 32)
        assert len(set(images.train.labels.bincount().tolist())) == 1
        assert len(images.test) == 10_000
        assert images.prepare(images.train.inputs[::10]).mean((0, 2, 3)).abs().max() < 0.05


def test_examples_on_a_gpu_are_not_sent_to_workers_beside_those_in_memory():
    data = FederatedDataModule(tiny_images, IID(), num_clients=5, num_classes=3, in_channels=1, batch_size=8)
    data.setup()
    expected = next(iter(data.client_dataloader(0, 0)))
    data.to(torch.device("meta"))  # which holds no values
    (images, labels), *_ = pickle.loads(pickle.dumps(data)).client_dataloader(0, 0)
    assert torch.equal(images, expected[0])
    assert torch.equal(labels, expected[1])


@pytest.mark.parametrize(("num_workers", "device", "pinned"), [(1, "cuda", True), (1, "cpu", False), (0, "cpu", False)])
def test_batches_that_travel_to_a_gpu_are_pinned(num_workers, device, pinned):
    data = FederatedDataModule(
        tiny_images, IID(), num_clients=5, num_classes=3, in_channels=1, batch_size=8, num_workers=num_workers
    )
    data.setup()
    data.to(torch.device(device))
    assert data.client_dataloader(0, 0).pin_memory == pinned


def test_text_that_is_no_play_is_named_as_such(tmp_path):
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "hamlet.txt").write_text("HAMLET\tTo be, or not to be\n")
    with pytest.raises(ValueError, match=r"hamlet\.txt: holds no speech; after a line `ACT I` a play has lines NAME"):
        shakespeare(str(tmp_path))
