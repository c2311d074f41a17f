"""A few of the files of tools/stress/corrupt_files.py: crafted and damaged ones."""

import random
import tarfile

import pytest

import corrupt_files
from corrupt_files import CRAFTED, ESCAPES, KINDS, READERS, attempt, damaged
from helpers.cases import thinned


@pytest.mark.parametrize("name", thinned(READERS))
def test_a_damaged_file_is_one_line_or_read_for_what_it_is(name):
    generator = random.Random(name)
    for kind in KINDS:
        attempt(READERS[name], lambda content, kind=kind: damaged(content, kind, generator), generator)


@pytest.mark.parametrize("name", thinned(CRAFTED))
def test_a_well_formed_file_of_something_else_is_refused_and_runs_nothing(name):
    generator = random.Random(name)
    for content in CRAFTED[name]:
        assert attempt(READERS[name], lambda _, content=content: content, generator), content[:200]


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda escape: f"{escape[0]} {escape[1]!r}")
def test_a_downloaded_archive_stays_within_its_folder(escape):
    line = corrupt_files.unpacked(escape, ("c/train", tarfile.REGTYPE, b"x"))
    assert "cannot be fetched" in line or "MD5" in line
