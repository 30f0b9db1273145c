"""Docstrings as bpfree writes them, plain text with `code` in backticks, for Sphinx.

What reStructuredText would read as markup (`|g|`, `s*(beta)`, `L_`) is taken literally;
a name of bpfree in backticks becomes a link.
"""

import re

_NAME = re.compile(r"bpfree(\.\w+)+")
_CODE = re.compile(r"(?<![`:])`([^`]+)`(?!`)")
# Names of arguments, which napoleon makes bold, and what is markup by chance.
_MARKUP = re.compile(r"(\*\*[\w, ]+\*\*(?= --))|\||\*(?!\s)|(?<=\w)_(?!\w)")


def plain(text: str) -> str:
    """Text outside of directives and examples, any number of lines."""
    pieces = _CODE.split(text)
    escaped = lambda found: found[1] or "\\" + found[0]  # noqa: E731
    pieces[::2] = [_MARKUP.sub(escaped, piece) for piece in pieces[::2]]
    pieces[1::2] = [_linked(code) for code in pieces[1::2]]
    return "".join(pieces)


def _linked(code: str) -> str:
    return f":py:obj:`{code}`" if _NAME.fullmatch(code) else f"``{code}``"


def _paragraphs(lines: list[str]) -> list[list[str]]:
    """Runs of lines between blank lines, which stand alone."""
    runs: list[list[str]] = [[]]
    for line in lines:
        runs += [[line], []] if not line.strip() else []
        runs[-1] += [line] if line.strip() else []
    return [run for run in runs if run]


def rewritten(lines: list[str]) -> list[str]:
    """The docstring with `plain` applied to its paragraphs of text."""
    result: list[str] = []
    directive: int | None = None  # its indentation, while we are inside one
    for run in _paragraphs(lines):
        first = run[0].lstrip()
        indent = len(run[0]) - len(first)
        if first and directive is not None and indent <= directive:
            directive = None
        literal = first == "::" or (len(run) > 1 and run[0].endswith("::"))
        if first.startswith(".. ") or literal:
            directive = indent
        is_text = directive is None and not first.startswith(">>> ")
        result += plain("\n".join(run)).split("\n") if is_text else run
    return result


def with_literal_blocks(lines: list[str]) -> list[str]:
    """Indented equations of a module's docstring, line for line as they stand."""
    result: list[str] = []
    for run in _paragraphs(lines):
        is_block = all(line.startswith("    ") for line in run)
        example = run[0].lstrip().startswith((">>> ", ".. "))
        result += ["::", "", *run] if is_block and not example else run
    return result


def _process(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = with_literal_blocks(lines) if what == "module" else lines
    lines[:] = rewritten(lines)


def _skip(app, what, name, obj, skipped, options):
    """Fields of named tuples are described under Attributes, once."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app) -> dict:
    app.connect("autodoc-process-docstring", _process, priority=900)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
