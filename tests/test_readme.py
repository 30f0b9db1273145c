"""The README's Python runs as written, block after block, in one namespace."""

import re
from pathlib import Path

import jax
import pytest

import bpfree

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.M | re.S)


def test_readme_code_runs(capsys):
    assert len(BLOCKS) >= 3
    names: dict = {}
    # A reader's session has JAX's own defaults, not this suite's strict ones.
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
    ):
        for number, block in enumerate(BLOCKS):
            try:
                exec(compile(block, f"README.md[{number}]", "exec"), names)
                blocks = bpfree.blocks(names["loss_fn"], names["params"], names["batch"])
            except ModuleNotFoundError as missing:  # frameworks of the extra `docs`
                assert missing.name in ("equinox", "haiku"), missing
            except Exception as error:
                pytest.fail(f"README code block {number} fails: {error!r}\n{block}")
            assert "error signals carried through a weight: 0" in str(blocks)
    printed = capsys.readouterr().out
    assert "error signals carried through a weight: 0" in printed
    assert all(line.strip() in README.read_text() for line in printed.splitlines()[1:])
