"""Docstrings as Griffe expects them, without Griffe."""

import re

TOGETHER = re.compile(r"^ {4}(\w+(?:, \w+)+): (.*(?:\n {5,}\S.*)*)", re.MULTILINE)


CODE = re.compile(r"(``.*?``|`[^`]*`)", re.DOTALL)


def as_text(prose: str) -> str:
    """Prose in which `<h, w>` is no tag of HTML and `a*b*c` no emphasis; code stays as it is."""
    parts = CODE.split(prose)
    return "".join(
        p if n % 2 else re.sub(r"(?<=\w)\*(?=\w)", r"\\*", p.replace("<", "&lt;")) for n, p in enumerate(parts)
    )


def in_griffes_words(docstring: str) -> str:
    """The docstring as Griffe's parser of Google style expects it.

    `Example:` is Griffe's `Examples:`. Arguments told together, `mean, std: of each channel`, are told one by one.
    """
    prose, heading, examples = docstring.replace("\nExample:\n", "\nExamples:\n").partition("\nExamples:\n")
    prose = TOGETHER.sub(lambda m: "\n".join(f"    {name}: {m[2]}" for name in m[1].split(", ")), prose)
    return as_text(prose) + heading + examples
