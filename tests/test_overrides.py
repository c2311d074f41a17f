"""Any text as the value of an override, and folders made absolute where they were typed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedpara.app.overrides import absolute, assignment, literal, parse

HERE = Path("/some/where")
TEXTS = st.text() | st.text(alphabet="\\'\"${}a,= \n:[]()~#")
ODD = [
    "o'b",
    "a b",
    "a,b",
    "a=b",
    "$a",
    "{a}",
    "[a]",
    "ü",
    "-a",
    'a"b',
    "a\\b",
    "a:b",
    "a#b",
    "(a)",
    "~a",
    "null",
    "1e3",
]


def read_back(argument):
    """What a program finds in its configuration."""
    override = parse(argument)
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, override.key_or_group, override.value())
    return OmegaConf.select(cfg, override.key_or_group)


@given(TEXTS)
def test_any_text_is_read_back_from_an_override(text):
    argument = assignment("paths.data_dir", text)
    assert read_back(argument) == text
    again = f"paths.data_dir={parse(argument).get_value_element_as_str()}"  # as sweepers hand it to their jobs
    assert read_back(again) == text


@given(TEXTS)
def test_any_text_of_a_saved_configuration_is_itself(text):
    saved = {"a": [text, {"b": text}]}
    assert OmegaConf.to_container(OmegaConf.create(literal(saved)), resolve=True) == saved


@given(st.text(alphabet="\\'\"{}a,= \n:[]()", min_size=1).filter(lambda text: text.strip()))
def test_a_folder_that_was_written_stays_as_it_is(text):
    folder = f"{HERE}/{text}"
    for key in ("resume", "paths.data_dir", "hydra.run.dir"):
        assert read_back(absolute(assignment(key, folder), HERE)) == folder
        assert read_back(absolute(assignment(key, text), HERE)) == folder


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("key", ["resume", "paths.data_dir", "hydra.sweep.dir", "+callbacks.x.folder"])
def test_a_folder_may_be_typed_as_in_a_shell(tmp_path, name, key):
    (tmp_path / name).mkdir()
    absolute_one = read_back(absolute(f"{key}={tmp_path / name}", HERE))
    assert absolute_one == str(tmp_path / name)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("paths.data_dir=data", "paths.data_dir='/some/where/data'"),
        ("paths.output_dir='a b'", "paths.output_dir='/some/where/a b'"),
        ("hydra.run.dir=logs/${now:%Y}", "hydra.run.dir='/some/where/logs/${now:%Y}'"),
        ("paths.data_dir=${oc.env:HOME}/x", None),
        ("paths.data_dir=/abs", None),
        ("paths.data_dir=a,b", None),  # alternatives of a sweep, each of which its job makes absolute
        ("paths.data_dir=null", None),
        ("hydra.sweep.subdir=a", None),
        ("seed=1", None),
        ("--config-dir=own", None),
        ("-m", None),
    ],
)
def test_what_is_made_absolute_and_what_stays(argument, expected):
    assert absolute(argument, HERE) == (expected or argument)


def test_a_home_folder_that_no_shell_expanded():
    assert read_back(absolute("paths.data_dir=~/data", HERE)) == str(Path.home() / "data")
