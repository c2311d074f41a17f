"""The drawing of the house, docs/explain/house.svg: a box for each room. A room imports only from lower rows.

tests/test_docs.py holds it against the layers of tests/test_repository.py.
"""

from html import escape
from pathlib import Path

Box = tuple[str, str, str]  # room, what it is for, kind
ROWS: list[tuple[str, list[Box]]] = [
    ("real clients", [("deployment", "server and node of real clients, over Flower", "program")]),
    ("what a person types", [("app", "from a command line to Federation.fit(); sweeps, resume, eval", "program")]),
    ("who watches a run", [
        ("callbacks", "progress, checkpoint, run folder, loggers, audit", "record"),
        ("report", "seeds, differences, figures, the page", "record"),
    ]),
    ("what leaves a run", [("export", "merged weights, ONNX, LoHa, a folder for the Hub", "record")]),
    ("the round", [
        ("federation", "the round, and the client's half of it", "server"),
        ("runs", "the run folder", "record"),
        ("dashboard", "W&B as code", "record"),
    ]),
    ("robust rules", [("aggregation", "median, trimmed mean, Krum, norms", "server")]),
    ("training clients", [
        ("execution", "serial, processes, vectorized, ray", "client"),
        ("privacy", "clip, noise, epsilon", "server"),
        ("sharing", "what travels", "wire"),
        ("record", "a round's figures", "record"),
    ]),
    ("what it is made of", [
        ("algorithms", "FedAvg, SCAFFOLD", "server"), ("communication", "bytes", "wire"),
        ("data", "partitions", "client"), ("models", "dense", "client"),
        ("nn", "FedPara", "client"), ("storage", "states", "record"),
        ("chain", "log", "record"), ("cost", "seconds, J", "record"),
    ]),
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
NOT_DRAWN = {"__init__", "__main__"}
COLOURS = {
    "program": ("#eceff4", "#4c566a"), "server": ("#dbe9fb", "#1f5fa8"), "client": ("#ddf3e1", "#1f7a3a"),
    "wire": ("#fdebd3", "#a85d10"), "record": ("#ece4f8", "#6a3fa0"), "ground": ("#f3f3f0", "#6b6b60"),
}  # fmt: skip
LEGEND = {
    "program": "programs", "server": "server", "client": "clients", "wire": "wire", "record": "files and figures",
    "ground": "used by all",
}  # fmt: skip
WIDTH, LABEL, HEIGHT, GAP, TOP = 1040, 132, 54, 14, 44


def rows() -> list[tuple[str, list[Box]]]:
    """The rows from the top; the last one has what is in the package besides, on which all others build."""
    drawn = {name for _, boxes in ROWS for name, _, _ in boxes}
    package = ROOT / "src" / "fedpara"
    there = {path.stem for path in [*package.glob("*.py"), *(found.parent for found in package.glob("*/__init__.py"))]}
    return [*ROWS, ("the ground", [(name, "", "ground") for name in sorted(there - drawn - NOT_DRAWN)])]


def rooms() -> dict[str, int]:
    """The row of each room, from the top."""
    return {name: number for number, (_, boxes) in enumerate(rows()) for name, _, _ in boxes}


def drawing() -> str:
    """The SVG, which has a light ground of its own and so looks alike on light and dark pages."""
    bottom = TOP + len(rows()) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" role="img" '
        'font-family="Helvetica, Arial, sans-serif">',
        "<title>The rooms of src/fedpara; each imports only from rows beneath it</title>",
        f'<rect width="{WIDTH}" height="{bottom}" rx="10" fill="#ffffff"/>',
        *_legend(),
    ]
    for number, (label, boxes) in enumerate(rows()):
        top = TOP + number * (HEIGHT + GAP)
        parts.append(f'<text x="14" y="{top + HEIGHT / 2 + 5}" font-size="14" fill="#555555">{escape(label)}</text>')
        parts += _row(boxes, top)
    return "\n".join([*parts, "</svg>", ""])


def _row(boxes: list[Box], top: int) -> list[str]:
    """The boxes of one row; each is as wide as its longest text asks for."""
    asked = [max(8.2 * len(name), 6.4 * len(purpose)) + 16 for name, purpose, _ in boxes]
    room = WIDTH - LABEL - 30 - GAP / 2 * (len(boxes) - 1)
    left, drawn = float(LABEL + 16), []
    for (name, purpose, kind), wish in zip(boxes, asked, strict=True):
        width = room * wish / sum(asked)
        fill, stroke = COLOURS[kind]
        middle = left + width / 2
        drawn.append(
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{HEIGHT}" rx="6" fill="{fill}" '
            f'stroke="{stroke}"/>'
        )
        name_at = top + (24 if purpose else 32)
        drawn.append(
            f'<text x="{middle:.1f}" y="{name_at}" font-size="15" font-weight="bold" text-anchor="middle" '
            f'fill="{stroke}">{escape(name)}</text>'
        )
        if purpose:
            drawn.append(
                f'<text x="{middle:.1f}" y="{top + 43}" font-size="12.5" text-anchor="middle" '
                f'fill="#333333">{escape(purpose)}</text>'
            )
        left += width + GAP / 2
    return drawn


def _legend() -> list[str]:
    left, drawn = LABEL + 16.0, []
    for kind, text in LEGEND.items():
        fill, stroke = COLOURS[kind]
        drawn.append(f'<rect x="{left}" y="14" width="14" height="14" rx="3" fill="{fill}" stroke="{stroke}"/>')
        drawn.append(f'<text x="{left + 20}" y="26" font-size="13" fill="#333333">{text}</text>')
        left += 34 + 7.5 * len(text)
    return drawn


def write() -> None:
    """Write the drawing."""
    (ROOT / "docs" / "explain" / "house.svg").write_text(drawing())
