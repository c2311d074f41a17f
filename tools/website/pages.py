"""The pages of the site, staged in a folder of their own: docs/ as it is, and what is made from other files.

A link to another page leads there. A link to any other file of the repository leads to a page with its text, so that
the site is whole by itself. A link to nothing is an error.
"""

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from os.path import relpath
from pathlib import Path, PurePosixPath

from website import configuration
from website.docstrings import as_text

ROOT = Path(__file__).resolve().parents[2]
MOVED = {  # pages that are kept elsewhere in the repository, by their place in the site
    "README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
    "configs/README.md": "reference/configuration.md", "results/experiments.md": "reproduce/experiments.md",
    "results/fig5/README.md": "results/fig5.md", "results/cifar10_gamma/README.md": "results/cifar10-gamma.md",
    "results/closing_the_gap/README.md": "results/closing-the-gap.md",
    "results/frontier_quickstart/README.md": "results/fewer-bytes.md",
    "results/robust_quickstart/README.md": "results/robust.md",
    "results/tiers_quickstart/README.md": "results/tiers.md",
}  # fmt: skip
COMING: set[str] = set()  # links to pages that another change brings are text until they are there
STYLE = Path(__file__).with_name("site.css")
PICTURES = {".png", ".svg"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".sbatch": "bash", ".json": "json", ".toml": "toml"}
NOT_CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)")
PERCENT = re.compile(r"(?<=\d) %")
API = {  # packages and modules with a page of the reference, and what the page is called
    "nn": "Factorisation", "algorithms": "Algorithms", "communication": "Communication", "federation": "Federation",
    "execution": "Execution", "data": "Data", "models": "Models", "sharing": "Sharing", "cost": "Cost",
    "runs": "Run folders", "report": "Report", "callbacks": "Callbacks", "deployment": "Deployment",
}  # fmt: skip


class DeadLink(ValueError):
    """A link to a file that is not there."""


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with its parts outside of code changed."""
    return "".join(part if number % 2 else change(part) for number, part in enumerate(NOT_CODE.split(text)))


def links(text: str) -> Iterator[tuple[str, str]]:
    """The relative links of a page, outside of code: the file, and the anchor or nothing."""
    for number, part in enumerate(NOT_CODE.split(text)):
        for match in LINK.finditer("" if number % 2 else part):
            if not re.match(r"[a-z]+:", match[2]):
                file, _, anchor = match[2].partition("#")
                yield file, anchor


def pages() -> dict[str, str]:
    """The pages that are kept in the repository: their place in the site by that in the repository."""
    own = {str(path.relative_to(ROOT)): str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    return own | MOVED


class Site:
    """A staged site.

    Args:
        folder: where the pages are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = pages()
        self.shown: set[str] = set()  # files with a page of their text, or pictures

    def stage(self) -> None:
        """Write all pages.

        Raises:
            DeadLink: a page links to a file that is not there.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        for source, place in self.pages.items():
            text = (ROOT / source).read_text()
            if source == "configs/README.md":
                text = configuration.pages()[place]
            more = configuration.EVERY_KEY if source == "configs/README.md" else ""
            self._write(place, self._with_links(text, source, place) + more)
        for place, text in configuration.pages().items():
            if place not in self.pages.values():
                self._write(place, text)
        self._write("reference/api/index.md", self._names())
        for package, title in API.items():
            self._write(f"reference/api/{package}.md", api_page(package, title))
        shutil.copy(STYLE, self.folder / STYLE.name)
        for file in sorted(self.shown):
            self._show(file)

    def _names(self) -> str:
        """The names of `fedpara` itself, with the first line of each docstring."""
        rows = [
            f"| [`{name}`]({home}.md#{module}.{name}) | {as_text(summary(module, name)).replace('|', '&#124;')} |"
            for name, (home, module) in sorted(public_names().items(), key=lambda item: item[0].lower())
        ]
        more = " [As a library](../../library.md) shows them at work." if "docs/library.md" in self.pages else ""
        about = (
            "Each is imported from `fedpara` when it is first asked for, so that `import fedpara` alone is quick, "
            f"and has an example in its docstring.{more}"
        )
        return "\n".join(["# Public names: `fedpara`", "", about, "", "| name | what it is |", "|---|---|", *rows, ""])

    def _write(self, place: str, text: str) -> None:
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _with_links(self, text: str, source: str, place: str) -> str:
        def of(match: re.Match[str]) -> str:
            label, target = match[1], match[2]
            if re.match(r"[a-z]+:|#", target):
                return match[0]
            file, _, anchor = target.partition("#")
            found = self._target(resolved(source, file), source)
            if found is None:
                return label.strip("[]")
            there = relpath(found, PurePosixPath(place).parent)
            return f"{label}({there}{'#' + anchor if anchor else ''})"

        return outside_code(text, lambda part: PERCENT.sub("\u202f%", LINK.sub(of, part)))

    def _target(self, file: str, source: str) -> str | None:
        """The place in the site to which a link to a file leads; None if the file is still to come."""
        if file in self.pages:
            return self.pages[file]
        if file in COMING:
            return None
        if not (ROOT / file).exists():
            raise DeadLink(f"{source}: links to {file}, which is not there")
        self.shown.add(file)
        return shown_at(file)

    def _show(self, file: str) -> None:
        path = ROOT / file
        if path.suffix in PICTURES:
            (self.folder / shown_at(file)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, self.folder / shown_at(file))
        elif path.is_dir():
            names = "\n".join(f"{one.name}{'/' * one.is_dir()}" for one in sorted(path.iterdir()) if one.name[0] != ".")
            self._write(shown_at(file), f"# {file}/\n\n```text\n{names}\n```\n")
        else:
            title = f'```{LANGUAGES.get(path.suffix, "text")} linenums="1"'
            fence = "`" * 6
            self._write(shown_at(file), f"# {file}\n\n{title.replace('```', fence)}\n{path.read_text()}\n{fence}\n")


def resolved(source: str, file: str) -> str:
    """A link of a page as a path in the repository."""
    return relpath(PurePosixPath("/") / PurePosixPath(source).parent / file, "/")


def shown_at(file: str) -> str:
    """The place in the site of a file that is shown."""
    if Path(file).suffix in PICTURES:
        return f"repository/{file}"
    return f"repository/{file}/index.md" if (ROOT / file).is_dir() else f"repository/{file}.md"


def exported(package: str) -> dict[str, str]:
    """The public names of a package, in the order of `__all__`, with the module in which each is defined."""
    tree = ast.parse((ROOT / "src" / "fedpara" / package / "__init__.py").read_text())
    homes: dict[str, str] = {}
    names = list[str]()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            homes |= {alias.asname or alias.name: node.module for alias in node.names}
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    return {name: homes[name] for name in names if name in homes}


def api_page(package: str, title: str) -> str:
    """A page of the reference: the docstring of a package and its public names, or a module."""
    if not (ROOT / "src" / "fedpara" / package).is_dir():
        return f"# {title}: `fedpara.{package}`\n\n::: fedpara.{package}\n"
    blocks = [f"# {title}: `fedpara.{package}`", f"::: fedpara.{package}\n    options:\n      members: false"]
    for name, module in exported(package).items():
        options = f"      heading: {name}\n      toc_label: {name}\n      show_root_heading: true"
        blocks.append(f"::: {module}.{name}\n    options:\n{options}")
    return "\n\n".join(blocks) + "\n"


def public_names() -> dict[str, tuple[str, str]]:
    """The names of `fedpara`, each with its package or module and the module in which it is defined."""
    tree = ast.parse((ROOT / "src" / "fedpara" / "__init__.py").read_text())
    (homes,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"
    ]
    found: dict[str, tuple[str, str]] = {}
    for home, names in ast.literal_eval(homes).items():
        is_package = (ROOT / "src" / "fedpara" / home).is_dir()
        found |= {name: (home, exported(home)[name] if is_package else f"fedpara.{home}") for name in names}
    return found


def summary(module: str, name: str) -> str:
    """The first line of the docstring of a class or function."""
    tree = ast.parse((ROOT / "src" / Path(*module.split("."))).with_suffix(".py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise LookupError(f"{module} has no {name}")
