"""The commands of the pages: the lines of their `bash` blocks, and which blocks tests run."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from website.pages import ROOT, pages

RUN = "<!-- tested: run -->"
INLINE = re.compile(r"`(python\s[^`]*)`")
BLOCK = re.compile(r"(?P<mark><!-- tested: run -->\n+)?^```bash\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PLACES = {  # what a reader puts in, by what the page has in its place
    "<algorithm>": "scaffold", "<0, 1, 2, 3, 4>": "0", "$f": "fedpara", "$s": "0", "<job>": "1", "<yours>": "batch",
    "<runs>": "runs", "<your configs>": "my-configs", "<user>": "me", "<name>": "digits",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Attributes:
        page: the file of the page.
        text: the commands, as they are.
        runs: whether a test runs them.
    """

    page: str
    text: str
    runs: bool

    def lines(self) -> Iterator[list[str]]:
        """The words of each command, without comments; a loop's variables have one of their values."""
        for line in self.text.replace("\\\n", " ").splitlines():
            for place, value in PLACES.items():
                line = line.replace(place, value)
            if words := shlex.split(line, comments=True):
                yield words


def blocks() -> list[Block]:
    """All blocks of all pages, and each command within a sentence as a block of its own."""
    made = []
    for page in sorted(pages()):
        text = Path(ROOT / page).read_text()
        made += [Block(page, match["text"], match["mark"] is not None) for match in BLOCK.finditer(text)]
        sentences = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        made += [Block(page, " ".join(match[1].split()), False) for match in INLINE.finditer(sentences)]
    return made
