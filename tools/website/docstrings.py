"""Docstrings as Griffe expects them, without Griffe."""

import re

TOGETHER = re.compile(r"^ {4}(\w+(?:, \w+)+): (.*(?:\n {5,}\S.*)*)", re.MULTILINE)


def in_griffes_words(docstring: str) -> str:
    """The docstring as Griffe's parser of Google style expects it.

    `Example:` is Griffe's `Examples:`. Arguments told together, `mean, std: of each channel`, are told one by one.
    """
    docstring = docstring.replace("\nExample:\n", "\nExamples:\n")
    return TOGETHER.sub(lambda m: "\n".join(f"    {name}: {m[2]}" for name in m[1].split(", ")), docstring)
