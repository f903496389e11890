"""How Sphinx builds the documentation: `nox -s docs` writes the site to docs/_build/html, offline.

Sphinx reads the docstrings as they are, keeps doctests in the pages, where the test suite runs them, and renders
formulas to MathML while it builds, so that a page needs no script, no font and no connection for them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import lmc_verify
from lmc_verify.cli.options import DOCUMENTATION, REPOSITORY

project = "lmc-verify"
copyright = "lmc-verify maintainers, MIT licence"
release = version = lmc_verify.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "reference", "settings_page"]
exclude_patterns = ["_build", "_extensions"]
default_role = "code"

myst_heading_anchors = 4
myst_fence_as_directive = ["math"]
suppress_warnings = ["myst.header"]  # the terms of the glossary are third-level headings, which reports read

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
trim_doctest_flags = True

html_theme = "furo"
html_title = f"lmc-verify {release}"
html_baseurl = DOCUMENTATION
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses for files
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
