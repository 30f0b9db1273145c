"""Write the tables and figures of README and documentation from `results/*.json`.

    python scripts/tables.py

A page has, in place of each, the comment `<!-- results: NAME -->`, the text that the
function of that name in a module `*_tables.py` makes, and `<!-- end -->`. A test
asserts that every page is as this script leaves it.
"""

import re
from pathlib import Path

import decorrelation_tables
import estimator_tables
import hardware_tables
import net_tables
import run_tables

MODULES = (
    decorrelation_tables,
    estimator_tables,
    hardware_tables,
    net_tables,
    run_tables,
)
ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/choose.md", "docs/benchmarks/*.md")
MARKED = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.S)


def made(name: str) -> str:
    """The text of a mark; KeyError for an unknown name."""
    for module in MODULES:
        if hasattr(module, name):
            return getattr(module, name)()
    raise KeyError(name)


def filled(text: str) -> str:
    """A page with the text of every mark made anew; KeyError for an unknown name."""
    return MARKED.sub(lambda m: m[1] + made(m[2]) + m[3], text)


def pages() -> list[Path]:
    return [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]


def main() -> None:
    for path in pages():
        text = path.read_text()
        if filled(text) != text:
            path.write_text(filled(text))
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
