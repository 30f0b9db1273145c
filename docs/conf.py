"""Settings of the documentation site: `sphinx-build -W docs docs/_build/html`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "ext"))
# Notebooks run in processes of their own, which inherit these.
os.environ["MATPLOTLIBRC"] = str(HERE / "matplotlibrc")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import bpfree  # noqa: E402

project = "bpfree"
author = "The bpfree developers"
version = release = bpfree.__version__
html_title = "bpfree"
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}
html_copy_source = html_show_copyright = False
exclude_patterns = ["_build"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinxcontrib.bibtex",
    "plain_docstrings",
    "public_names",
]
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

# Every page with code cells runs at every build, and a page that fails stops it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_output_stderr = "remove-warn"
nb_render_markdown_format = "myst"  # with tables

autodoc_member_order = "bysource"
autodoc_typehints = "none"
python_maximum_signature_line_length = 72
napoleon_numpy_docstring = False
# "a, b: text" is one entry for both names.
napoleon_use_param = napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"
