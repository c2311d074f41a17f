"""docs/library.md: every block runs, prints what the page says, and the two that are promised to be short are."""

import re

import pytest

from helpers import ROOT

PAGE = (ROOT / "docs" / "library.md").read_text()
# a python block, and the text block that is its output
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE, re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+\.?\d*")


def skeleton(text):
    """The text without its numbers, and the numbers."""
    return NUMBER.sub("#", text), [float(number) for number in NUMBER.findall(text)]


def same_output(printed, expected):
    """Whether two texts differ at most in the last digits of measured numbers, which depend on the processor."""
    (one, ours), (other, theirs) = skeleton(printed), skeleton(expected)
    return one == other and ours == pytest.approx(theirs, rel=0.04)


@pytest.mark.slow
def test_every_block_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == PAGE.count("```python") >= 6
    known = {"__name__": "__main__"}
    for code, expected in BLOCKS:
        exec(compile(code, "docs/library.md", "exec"), known)
        printed, lines = capsys.readouterr().out.splitlines(), expected.splitlines()
        shown = printed[len(printed) - len(lines) :] if "run(compose" in code else printed  # a run has much to say
        assert same_output("\n".join(shown), "\n".join(lines)), (printed, lines)


@pytest.mark.parametrize(("word", "limit"), [("merge(net)\n", 10), ("federation.run_round()", 15)])
def test_the_short_programs_are_short(word, limit):
    (lines,) = [[line for line in code.splitlines() if line] for code, _ in BLOCKS if word in code]
    assert len(lines) <= limit


def test_a_wrong_number_would_be_found():
    assert same_output("round 1: 59 % for 0.71 MB", "round 1: 60 % for 0.71 MB")
    assert not same_output("round 1: 59 % for 0.71 MB", "round 1: 69 % for 0.71 MB")
    assert not same_output("round 1: 59 % for 0.71 MB", "round 1: 59 % of 0.71 MB")
