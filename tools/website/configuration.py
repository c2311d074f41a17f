"""The configuration reference: every group of configs/, its choices, and their keys with defaults and comments.

It reads the files alone, so it needs PyYAML and nothing of the package.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
EVERY_KEY = (
    "\n## Every key\n\n[Parts](parts.md) and [presets](presets.md) have every choice with its keys and values.\n"
)
PRESET = "# @package _global_"


@dataclass(frozen=True)
class Key:
    """A key of a file: its dotted name, its value as it is written, and the comment in its line."""

    name: str
    value: str
    comment: str


@dataclass(frozen=True)
class Choice:
    """One file of configs/.

    Attributes:
        group: its folder, empty for the top level.
        name: its name without `.yaml`.
        text: its contents.
    """

    group: str
    name: str
    text: str

    @property
    def is_preset(self) -> bool:
        """Whether it sets keys of several groups."""
        return PRESET in self.text

    @property
    def typed(self) -> str:
        """How one chooses it; the name of its file at the top level."""
        group, _, folder = self.group.partition("/") if self.group.startswith("experiment") else (self.group, "", "")
        name = f"{folder}/{self.name}" if folder else self.name
        return f"{group}={name}" if group else f"{self.name}.yaml"

    @property
    def about(self) -> str:
        """The comment at its head."""
        lines = []
        for line in self.text.splitlines():
            if not line.startswith("#"):
                break
            if line != PRESET:
                lines.append(line.lstrip("# "))
        return " ".join(lines)

    @property
    def defaults(self) -> list[str]:
        """What its `defaults` list chooses, as one would type it."""
        found = (yaml.safe_load(self.text) or {}).get("defaults", [])
        return [_default(entry, self.group) for entry in found if entry != "_self_"]

    @property
    def keys(self) -> list[Key]:
        """Its keys, in its order."""
        node = yaml.compose(self.text)
        return list(_keys(node, self.text.splitlines())) if isinstance(node, yaml.MappingNode) else []


def _default(entry: str | dict[str, str | None], own: str) -> str:
    if isinstance(entry, str):
        return f"{own}={entry}"
    ((group, choice),) = entry.items()
    group = re.sub(r"^(optional|override) ", "", group).lstrip("/")
    return f"{group}={'null' if choice is None else choice}"


def _keys(node: yaml.MappingNode, lines: list[str], before: str = "") -> Iterator[Key]:
    """The leaves of a mapping. The comment in the line of a mapping within it has a row of its own."""
    for key, value in node.value:
        name = f"{before}{key.value}"
        if name == "defaults":
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            end = value.end_mark if value.flow_style else key.end_mark
            comment = _comment(lines[end.line], end.column)
            if comment:
                yield Key(name, "", comment)
            yield from _keys(value, lines, f"{name}.")
        elif isinstance(value, yaml.SequenceNode) and not value.flow_style:
            yield Key(name, ", ".join(_written(item, lines) for item in value.value), "")
        else:
            yield Key(name, _written(value, lines), _comment(lines[value.end_mark.line], value.end_mark.column))


def _written(node: yaml.Node, lines: list[str]) -> str:
    """A value as the file has it."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column].strip()
    middle = lines[start.line + 1 : end.line]
    return " ".join([lines[start.line][start.column :], *middle, lines[end.line][: end.column]]).strip()


def _comment(line: str, column: int) -> str:
    return line[column:].partition("#")[2].strip() if column < len(line) else ""


def choices() -> list[Choice]:
    """All files of configs/, by group."""
    made = []
    for path in sorted(CONFIGS.rglob("*.yaml")):
        group = str(path.relative_to(CONFIGS).parent)
        if path.name == "reproduce.yaml":  # the queue of src/reproduce.py, not a part of a run
            continue
        made.append(Choice("" if group == "." else group, path.stem, path.read_text()))
    return made


def _cell(text: str, code: bool = False) -> str:
    text = text.replace("|", r"\|")
    return f"`{text}`" if code and text else text


def _section(choice: Choice, level: str) -> Iterator[str]:
    yield f"{level} `{choice.typed}`"
    if choice.about:
        yield _prose(choice.about)
    if choice.defaults:
        yield "It builds on " + ", ".join(f"`{default}`" for default in choice.defaults) + "."
    keys = list(_prefixed(choice))
    if any(key.comment for key in keys):
        rows = [f"| `{key.name}` | {_cell(key.value, code=True)} | {_cell(_prose(key.comment))} |" for key in keys]
        yield "\n".join(["| key | value | meaning |", "|---|---|---|", *rows])
    elif keys:
        rows = [f"| `{key.name}` | {_cell(key.value, code=True)} |" for key in keys]
        yield "\n".join(["| key | value |", "|---|---|", *rows])


def _prefixed(choice: Choice) -> Iterator[Key]:
    """The keys as one types them: with their group, unless the file has whole keys."""
    group = "" if choice.is_preset or not choice.group or choice.group.startswith("hydra") else f"{choice.group}."
    group = "hydra.launcher." if choice.group == "hydra/launcher" else group
    group = "hydra." if choice.group == "hydra" else group
    for key in choice.keys:
        if key.name != "_convert_" and not key.name.endswith("._convert_"):
            yield Key(f"{group}{key.name}", key.value, key.comment)


def _prose(text: str) -> str:
    """A comment as Markdown: what looks like markup is text, except code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if number % 2 else re.sub(r"([*_<])", r"\\\1", part) for number, part in enumerate(parts))


def _groups(kind: bool) -> dict[str, list[Choice]]:
    found: dict[str, list[Choice]] = {}
    for choice in choices():
        found.setdefault(choice.group, []).append(choice)
    presets = {group for group, members in found.items() if any(choice.is_preset for choice in members)}
    presets |= {"experiment/paper"} & found.keys()
    return {group: members for group, members in found.items() if (group in presets) == kind}


def page(title: str, presets: bool, introduction: str) -> str:
    """A page with the groups of one kind: parts, or presets."""
    blocks = [f"# {title}", introduction]
    for group, members in sorted(_groups(presets).items()):
        blocks.append(f"## {group}" if group else "## Top level")
        for choice in members:
            blocks += _section(choice, "###")
    return "\n\n".join(blocks) + "\n"


def pages() -> dict[str, str]:
    """The pages by their place in the site: the index of configs/ with the parts, and the presets."""
    index = (CONFIGS / "README.md").read_text().replace("# configs/", "# Configuration", 1)
    note = (
        "Made from `configs/` at build. A value such as `${data.num_classes}` is taken from another key; `???` must be "
        "set by a choice."
    )
    parts = f"Every part with its choices and keys. {note}"
    return {
        "reference/configuration.md": index,
        "reference/parts.md": page("Configuration: parts", False, parts),
        "reference/presets.md": page("Configuration: presets", True, "What each preset chooses and sets. " + note),
    }
