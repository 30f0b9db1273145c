"""The documentation: code on its pages, examples in docstrings, and no name left out.

`sphinx-build -W` (the slow test) runs every page; here only those that take seconds run.
"""

import doctest
import functools
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin

import jax
import optax
import pytest
from flax import linen as nn

import bpfree

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
CELL = re.compile(
    r"^```(?:python|\{code-cell\}[^\n]*)\n(?::[^\n]*\n)*(.*?)^```$", re.M | re.S
)
FAST = ("contributing.md", "howto/optax.md", "howto/recipes.md", "quickstart.md")


@pytest.fixture
def readers_session():
    """JAX's own defaults, which a reader's session has, not this suite's strict ones."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
    ):
        yield


def compiled(page: Path):
    for number, code in enumerate(CELL.findall(page.read_text())):
        yield compile(code, f"{page.relative_to(ROOT)}[{number}]", "exec")


def test_the_code_of_all_pages_compiles():
    assert sum(len(list(compiled(page))) for page in PAGES) > 40


@pytest.mark.parametrize("name", FAST)
def test_the_code_of_a_page_runs(name, readers_session):
    names: dict = {}
    for code in compiled(ROOT / "docs" / name):
        try:
            exec(code, names)
        except ModuleNotFoundError as missing:  # frameworks of the extra `docs`
            assert missing.name in ("equinox", "haiku"), missing


def test_the_skeleton_of_an_estimator_is_aligned(readers_session):
    """On average over keys the skeleton's estimate is the gradient: slope 1."""
    from tests import problems

    names: dict = {}
    for code in compiled(ROOT / "docs/contributing.md"):
        exec(code, names)
    params, batch = problems.mlp_params("float32"), problems.mlp_batch(64, "float32")
    estimates = problems.estimates(
        names["one_sample"](problems.mlp_loss, sigma=1e-3), params, batch, repeats=2000
    )
    truth = problems.gradient(problems.mlp_loss, params, batch)
    for name, exact in truth.items():
        slopes = (estimates[name] * exact).reshape(2000, -1).sum(1) / (exact**2).sum()
        assert abs(slopes.mean() - 1) <= 4 * slopes.std() / 2000**0.5 + 1e-3


# ----------------------------------------------------------------------------- docstrings


def examples(text: str, name: str, names: dict) -> doctest.DocTest:
    return doctest.DocTestParser().get_doctest(text, dict(names), name, None, 0)


def run(test: doctest.DocTest) -> int:
    """Number of failures; they are printed."""
    return doctest.DocTestRunner(verbose=False).run(test, clear_globs=False).failed


@functools.cache
def set_up() -> dict:
    setup = examples(bpfree.__doc__, "bpfree", {})
    assert setup.examples and not run(setup)
    return setup.globs


@pytest.fixture
def shared(readers_session) -> dict:
    """The names that the package's own docstring sets up, which nothing writes into."""
    return dict(set_up())


def public_names():
    path = ROOT / "docs/ext/public_names.py"
    spec = importlib.util.spec_from_file_location("public_names", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PUBLIC = public_names().public_objects()


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of_a_docstring_runs(name, shared):
    test = examples(inspect.getdoc(PUBLIC[name]) or "", name, shared)
    assert test.examples and not run(test)


def test_every_public_name_explains_its_arguments_and_has_an_example():
    assert public_names().all_faults() == []


def literals(annotation) -> list[str]:
    inner = [literals(part) for part in get_args(annotation) if part is not annotation]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for found in inner for choice in found]


CHOICES = {
    (name, arg): literals(parameter.annotation)
    for name, value in PUBLIC.items()
    if inspect.isfunction(value)
    for arg, parameter in inspect.signature(value).parameters.items()
    if literals(parameter.annotation)
}


@pytest.mark.parametrize("name, arg", CHOICES)
def test_an_unknown_choice_is_refused_with_its_literals(name, arg, shared):
    given = {
        **{k: shared[k] for k in ("loss_fn", "params", "batch")},
        "example_batch": shared["batch"],
        **{"inner": optax.sgd(0.1), "learning_rate": 0.1},
        "layers": [nn.Dense(2)],
        "energy": bpfree.layered([nn.Dense(2)]),
        **{"model": nn.Dense(2), "loss": optax.squared_error},
        **{"key": jax.random.key(0), "x": jax.numpy.ones((2, 3)), "severity": 1},
    }
    wanted = {
        k: given[k]
        for k, p in inspect.signature(PUBLIC[name]).parameters.items()
        if p.default is p.empty and k in given
    }
    with pytest.raises(ValueError) as raised:
        PUBLIC[name](**wanted | {arg: "unheard of"})
    assert [c for c in CHOICES[name, arg] if repr(c) not in str(raised.value)] == []


def test_the_names_of_baselines_are_literals():
    from bpfree.choices import BaselineName
    from bpfree.sampling import baselines

    assert set(get_args(BaselineName)) == set(baselines.NAMES)


def test_what_a_docstring_lacks_is_found():
    def bare(x, *, scale):
        pass

    def documented(x, *, scale):
        """Multiply.

        Args:
          x: array.

        Example:
            >>> scale
        """

    def open_choice(how: str = "fast"):
        """Args:
          how: "fast" or "slow".

        >>> open_choice()
        """

    class Pair(NamedTuple):
        first: int

    check = public_names().faults
    assert check("bare", bare) == [
        "bare has no docstring",
        "bare has no example",
        "bare does not explain scale",
        "bare does not explain x",
    ]
    assert check("documented", documented) == ["documented does not explain scale"]
    assert check("f", open_choice) == ["f: how should be a Literal"]
    assert "Pair has no docstring" in check("Pair", Pair)


def test_a_wrong_example_fails(shared, capsys):
    assert run(examples(">>> bpfree.node(jnp.ones(2)).shape\n(3,)\n", "planted", shared))
    assert "(2,)" in capsys.readouterr().out


# -------------------------------------------------------------------------- README, site


def test_readme_is_short_and_its_links_exist():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_a_public_name_without_an_entry_is_found():
    check = public_names()
    names = [name for module in check.MODULES for name in check.public_names(module)]
    assert check.undocumented(names) == []
    rest = [name for name in names if name != "bpfree.node"]
    assert check.undocumented(rest) == ["bpfree.node"]


def test_every_page_is_linked_from_a_table_of_contents():
    trees = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.M | re.S)
    listed = {ROOT / "docs/index.md"}
    for page in PAGES:
        for tree in trees.findall(page.read_text()):
            entries = [e for e in tree.split("\n") if e and not e.startswith(":")]
            listed |= {page.parent / f"{entry}.md" for entry in entries}
    assert set(PAGES) <= listed


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_nb")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
