"""Write the tables and figures of README and documentation from `results/*.json`.

    python scripts/tables.py

A page has, in place of each, the comment `<!-- results: NAME -->`, the text that the
function of that name in `estimator_tables.py` or `net_tables.py` makes, and
`<!-- end -->`. A test asserts that every page is as this script leaves it.
"""

import re
from collections.abc import Callable
from pathlib import Path

import estimator_tables as of_estimators
import net_tables as of_nets

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/choose.md", "docs/benchmarks/*.md")
MARKED = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.S)


TEXTS: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        of_estimators.alignment,
        of_estimators.training,
        of_estimators.learned_feedback,
        of_estimators.unbiased_feedback,
        of_estimators.unbiased_along,
        of_estimators.recommend,
        of_nets.pretrained_characters,
        of_nets.pretrained_characters_longer,
        of_nets.pretrained_pronunciation,
        of_nets.pretrained_pronunciation_longer,
        of_estimators.choice,
        of_estimators.first_call,
        of_estimators.cost,
        of_nets.robustness,
        of_nets.architectures,
        of_nets.energies,
        of_nets.digits,
        of_nets.first_run,
    )
}


def filled(text: str) -> str:
    """A page with the text of every mark made anew; KeyError for an unknown name."""
    return MARKED.sub(lambda m: m[1] + TEXTS[m[2]]() + m[3], text)


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
