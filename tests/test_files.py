"""Atomic writes: by several processes at once, after one was killed, and with what is in the way."""

import fcntl
import os
import stat
from itertools import count

import pytest

from fedpara.files import write_atomically


def test_writers_of_one_path_do_not_share_a_temporary_file(tmp_path):
    """The first is stopped before its rename, and the second writes all of its own meanwhile."""
    path, names = tmp_path / "x", []

    def meanwhile(temporary):
        names.append(temporary.name)
        write_atomically(path, b"second", ready=lambda other: names.append(other.name))
        assert path.read_bytes() == b"second"

    write_atomically(path, b"first, and longer", ready=meanwhile)
    assert path.read_bytes() == b"first, and longer"
    assert names == [".x.partial", ".x.1.partial"]
    assert os.listdir(tmp_path) == ["x"]


def test_processes_that_write_one_path_at_once_never_leave_half_a_file(tmp_path):
    path, whole = tmp_path / "x", {letter: letter * 300_000 for letter in (b"a", b"b", b"c")}
    path.write_bytes(whole[b"a"])
    children = []
    for letter in whole:
        if (child := os.fork()) == 0:
            status = 1
            try:
                for _ in range(60):
                    write_atomically(path, whole[letter], durable=False)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    waiting = set(children)
    while waiting:
        assert path.read_bytes() in whole.values()
        for child in [*waiting]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                waiting.remove(child)
                assert status == 0
    assert os.listdir(tmp_path) == ["x"]


def killed(path, content):
    """A process that dies as by SIGKILL before its rename."""
    if (child := os.fork()) == 0:
        write_atomically(path, content, ready=lambda temporary: os._exit(9))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_leftovers_of_killed_processes_do_not_pile_up(tmp_path):
    for number in range(3):
        killed(tmp_path / "x", b"longer than the next one" * (3 - number))
        assert os.listdir(tmp_path) == [".x.partial"]
    write_atomically(tmp_path / "x", b"whole")
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    def full(temporary):
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "x", b"old")
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "x", b"new", ready=full)
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_name_that_another_writer_has_just_given_up_is_not_taken_from_the_next(tmp_path, monkeypatch):
    """After our opening and before our lock, its writer renamed the file: what we hold is the finished one."""
    path, lock, calls = tmp_path / "x", fcntl.flock, count()
    (tmp_path / ".x.partial").write_bytes(b"finished by another")

    def late(descriptor, how):
        if next(calls) == 0:
            os.replace(tmp_path / ".x.partial", path)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_atomically(path, b"ours", ready=lambda temporary: (path.read_bytes() == b"finished by another") or 1 / 0)
    assert path.read_bytes() == b"ours"
    assert os.listdir(tmp_path) == ["x"]


def test_without_locks_no_ones_temporary_file_is_taken(tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path, theirs = tmp_path / "x", tmp_path / ".x.partial"
    write_atomically(path, b"first")
    theirs.write_bytes(b"half of another's")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert theirs.read_bytes() == b"half of another's"
    assert sorted(os.listdir(tmp_path)) == [".x.partial", "x"]


def test_a_file_has_the_permissions_of_any_other(tmp_path):
    write_atomically(tmp_path / "x", b"")
    (tmp_path / "y").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "y").stat().st_mode)
