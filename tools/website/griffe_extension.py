"""An extension of Griffe, which reads the docstrings for the site."""

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from website.docstrings import in_griffes_words


class Habits(griffe.Extension):
    """Rewrites what Griffe read, before it makes signatures and sections from it."""

    def on_alias_instance(self, *, alias: griffe.Alias, **kwargs: Any) -> None:
        """Let pydantic's decorator count as that of the standard library, so that a dataclass has a signature."""
        if alias.target_path == "pydantic.dataclasses.dataclass":
            alias.target_path = "dataclasses.dataclass"

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Put the docstring in Griffe's words."""
        if obj.docstring is not None:
            obj.docstring.value = in_griffes_words(obj.docstring.value)
