"""README and docs/: tables, links, commands, the drawing and the configuration reference agree with the repository."""

import re
import subprocess
import sys

import pytest
import yaml

import fedpara
from fedpara.app.composition import compose
from fedpara.app.overrides import parse
from helpers import ROOT
from helpers.cases import thinned
from test_repository import LAYERS
from website import commands, configuration, house, tables
from website.docstrings import in_griffes_words
from website.pages import API, COMING, LINK, NOT_CODE, Site, exported, links, pages, public_names, resolved, summary

PAGES = sorted(pages())
SITE = ROOT / "tools" / "website" / "zensical.toml"


def slugs(text):
    """The anchors of a page's headings, as GitHub and the site make them."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_tables_are_those_of_the_files():
    assert [str(path) for path, _ in tables.outdated()] == [], "make docs-tables writes them anew"


def test_every_table_is_on_a_page():
    named = [match["name"] for page in tables.PAGES for match in tables.MARKED.finditer((ROOT / page).read_text())]
    assert sorted(named) == sorted(tables.MAKERS)


def test_a_table_that_nothing_makes_is_an_error():
    with pytest.raises(KeyError, match="nothing"):
        tables.written("<!-- table: nothing -->\n<!-- table end -->")


def test_the_drawing_is_drawn_and_has_every_room_above_what_it_imports():
    assert (ROOT / "docs/explain/house.svg").read_text() == house.drawing(), "make docs-tables draws it anew"
    rows = house.rooms()
    assert rows.keys() == LAYERS.keys() - house.NOT_DRAWN
    for room in rows:
        assert all(rows[room] < rows[other] for other in LAYERS[room]), room


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for file, anchor in links(text):
        target = resolved(page, file) if file else page
        if target in COMING:
            continue
        assert (ROOT / target).exists(), f"{page}: {file}"
        if anchor:
            assert anchor in slugs((ROOT / target).read_text()), f"{page}: {file}#{anchor}"


def test_dead_links_and_links_within_code_are_told_apart():
    assert list(links("[a](b.md#c) `[x](y)` [d](https://e) ![f](g.png)")) == [("b.md", "c"), ("g.png", "")]
    assert slugs("# What is *promised*?\n```\n# no heading\n```\n## Same bits") == {"what-is-promised", "same-bits"}


def test_every_page_is_in_the_navigation_once():
    named = re.findall(r'= "([\w/.-]+\.md)"', SITE.read_text())
    made = {*configuration.pages(), *(f"reference/api/{page}.md" for page in ["index", *API])}
    coming = {page.removeprefix("docs/") for page in COMING}
    assert len(named) == len(set(named))
    assert set(named) - coming == (set(pages().values()) | made) - coming


def test_the_site_is_staged_whole_and_a_dead_link_stops_it(tmp_path, monkeypatch):
    """Without the generator: every link of a staged page leads to a staged file."""
    site = Site(tmp_path / "pages")
    site.stage()
    staged = {path for path in site.folder.rglob("*") if path.is_file()}
    assert len(staged) > 60
    for path in staged:
        if path.suffix == ".md" and "repository" not in path.relative_to(site.folder).parts:
            for file, _ in links(path.read_text()):
                assert not file or (path.parent / file).resolve() in staged, f"{path}: {file}"
    home = (site.folder / "index.md").read_text()
    assert "(start/quickstart.md)" in home
    assert "11.6\u202f%" in home
    with pytest.raises(ValueError, match=r"docs/start/data\.md: links to docs/start/nothing\.md, which is not there"):
        Site(tmp_path / "other")._with_links("[x](nothing.md)", "docs/start/data.md", "start/data.md")


def test_the_page_of_public_names_has_all_of_them():
    """Read from the source; the docstrings are those of the objects."""
    found = public_names()
    assert found.keys() == set(fedpara.__all__)
    for name, (_, module) in found.items():
        thing = getattr(fedpara, name)
        assert (thing.__module__, thing.__doc__.strip().partition("\n")[0]) == (module, summary(module, name))


def built_by():
    """A Python that has the generator: this one, or that of `make docs`."""
    for python in (sys.executable, str(ROOT / ".venv-docs" / "bin" / "python")):
        command = [python, "-c", "import zensical, mkdocstrings_handlers.python"]
        try:
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return python
        except OSError:
            continue
    return None


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    python = built_by()
    if python is None:
        pytest.skip("the generator is not installed; `make docs` installs it in .venv-docs")
    done = subprocess.run(
        [python, ROOT / "tools/docs.py", "build", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith(", 0 warnings\n")
    page = (tmp_path / "site/reference/api/nn/index.html").read_text()
    for name in exported("nn"):
        assert f'.{name}"' in page, name
    assert "Source code in" in page
    assert "sharing.personal_rate" in (tmp_path / "site/reference/parts/index.html").read_text()
    assert (tmp_path / "site/search.json").is_file()


def flat(node, before=""):
    """Every leaf of a file by its dotted name."""
    if not isinstance(node, dict) or not node:
        yield before[:-1], node
        return
    for name, value in node.items():
        if not (before == "" and name == "defaults"):
            yield from flat(value, f"{before}{name}.")


@pytest.mark.parametrize("choice", configuration.choices(), ids=lambda choice: f"{choice.group}/{choice.name}")
def test_the_reference_has_every_key_with_its_value(choice):
    """The values as PyYAML reads the whole file; a list is compared by its items."""
    found = {key.name: key.value for key in choice.keys if key.value}
    for name, value in flat(yaml.safe_load(choice.text) or {}):
        at = next(
            (part for part in (name.rsplit(".", n)[0] for n in range(name.count(".") + 1)) if part in found), None
        )
        if name:
            assert at, name
            written = yaml.safe_load(found[at]) if not found[at].startswith("- ") else value
            rest = name.removeprefix(at).lstrip(".")
            for part in filter(None, rest.split(".")):
                written = written[part] if isinstance(written, dict) else written
            if not isinstance(value, list):
                assert written == value, name


def test_the_reference_has_the_comment_of_a_key_and_of_a_file():
    pages = configuration.pages()
    assert (
        "| `federation.retries` | `0` | further attempts in a round for a client that failed |"
        in pages["reference/parts.md"]
    )
    assert "The server's side; an experiment sets the numbers." in pages["reference/parts.md"]
    assert "### `setting=femnist_20`" in pages["reference/presets.md"]
    assert "### `experiment=paper/fig3`" in pages["reference/presets.md"]
    assert all(f"### `{choice.typed}`\n" in "".join(pages.values()) for choice in configuration.choices())


@pytest.mark.parametrize("page", PAGES)
def test_a_percent_sign_has_a_space_before_it(page):
    prose = "".join(part for number, part in enumerate(NOT_CODE.split((ROOT / page).read_text())) if number % 2 == 0)
    assert not re.findall(r".{20}\d%", LINK.sub("", prose))


def test_what_is_printed_has_a_space_before_the_percent_sign_too():
    """The format `:.2%` writes none."""
    written = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    written += [path for name in ("deploy", "tools", "benchmarks") for path in (ROOT / name).glob("*.py")]
    assert not [str(path) for path in written if re.search(r"\{[^{}]*:[^{}]*\d%\}", path.read_text())]


@pytest.mark.parametrize("page", sorted(set(PAGES) - COMING))
def test_every_block_of_code_says_what_it_is(page):
    """So that no commands hide from the tests below."""
    fences = re.findall(r"^```(.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert all(fences[::2]), page
    assert not any(fences[1::2]), page


BLOCKS = commands.blocks()
NAMES = [f"{block.page}-{number}" for number, block in enumerate(BLOCKS)]


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_commands_are_shell_and_name_files_that_exist(block):
    text = re.sub(r"<[^<>\n]*>", "x", block.text)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in block.lines():
        if words[0] == "make":
            assert words[1] in targets, words
        for word in words:
            if re.fullmatch(r"(src|tools|docs|benchmarks|deploy)/[\w/.-]+\.\w+", word):
                assert (ROOT / word).is_file(), words


def jobs(words):
    """The first and the last job of a command of train.py: each list of values at its ends."""
    lists = []
    for word in words:
        override = None if word.startswith("-") else parse(word)
        swept = override is not None and override.is_sweep_override()
        values = list(override.sweep_string_iterator()) if swept else []
        lists.append([f"{override.get_key_element()}={value}" for value in values] or [word])
    return [[values[0] for values in lists], [values[-1] for values in lists]]


BY_HAND = "resume=", "pretrained.file=", "--config-dir="  # a run or a folder of the reader's own
STARTS = ["python", "src/train.py"], ["fedpara", "train"]
TRAINING = [
    (block.page, words[2:])
    for block in BLOCKS
    for words in block.lines()
    if words[:2] in STARTS and not any(word.startswith(BY_HAND) for word in words)
]


@pytest.mark.parametrize(
    ("page", "words"), thinned(TRAINING, 5), ids=[" ".join(words)[:80] or "alone" for _, words in TRAINING]
)
def test_commands_of_the_pages_compose(page, words):
    if "hydra/launcher=slurm" in words:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for job in jobs([word for word in words if not word.startswith("-")]):
        assert compose(job).federation.num_rounds > 0


def test_docstrings_are_put_in_griffes_words():
    ours = "<h, w> a*b*c `<x>`.\n\nArgs:\n    mean, std: of each\n        channel.\n    x: text.\n"
    theirs = "&lt;h, w> a\\*b\\*c `<x>`.\n\nArgs:\n    mean: of each\n        channel.\n"
    theirs += "    std: of each\n        channel.\n    x: text.\n"
    example = "\nExample:\n    >>> 1 < 2\n    True\n"
    assert in_griffes_words(ours + example) == theirs + example.replace("Example", "Examples")
