"""The documentation: `make docs` builds the site, `make docs-tables` writes the tables of its pages.

python tools/docs.py build [FOLDER]   # FOLDER/site (build/site), warnings as errors; needs fedpara[docs] alone
python tools/docs.py tables           # tables and drawing anew, from results/; needs the package, not fedpara[docs]
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools")]
CONFIGURATION = ROOT / "tools" / "website" / "zensical.toml"
TROUBLE = re.compile(r"warning|error|griffe:|traceback", re.IGNORECASE)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def build(folder: Path) -> None:
    """Stage the pages in `folder/pages` and build `folder/site`; any warning ends the program."""
    from website.pages import DeadLink, Site

    try:
        Site(folder / "pages").stage()
    except DeadLink as error:
        sys.exit(f"error: {error}")
    there = folder / "zensical.toml"
    there.write_text(configuration(folder / "pages"))
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict", "--clean", "-f", str(there)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    output = COLOUR.sub("", done.stdout)
    warnings = [line for line in output.splitlines() if TROUBLE.search(line)]
    if done.returncode or warnings:
        sys.exit(f"{output}\nerror: the site has {len(warnings)} warnings")
    site = folder / "site"
    print(f"{sum(1 for _ in site.rglob('index.html'))} pages in {site}, 0 warnings")


def configuration(pages: Path) -> str:
    """Zensical's settings, without pages that are still to come."""
    lines = CONFIGURATION.read_text().splitlines()
    kept = [
        line for line in lines if not (page := re.search(r'= "([\w/.-]+\.md)"', line)) or (pages / page[1]).is_file()
    ]
    return "\n".join(kept).replace("@root@", str(ROOT)) + "\n"


def tables() -> None:
    """Write the tables and the drawing anew."""
    from website import house
    from website.tables import write

    house.write()
    for name in write():
        print(name)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["build"]:
            build(ROOT / "build")
        case ["build", folder]:
            build(Path(folder).resolve())
        case ["tables"]:
            tables()
        case _:
            sys.exit(__doc__)
