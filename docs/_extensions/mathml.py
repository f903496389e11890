"""Formulas as MathML, made while the site is built: browsers show it without a script or a font."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator

__all__ = ["mathml", "setup"]

ENVIRONMENTS = {"array", "cases", "matrix", "pmatrix", "bmatrix"}


def mathml(tex: str, display: str) -> str:
    """Return LaTeX as MathML.

    Raises:
        ExtensionError: a command or an environment that the converter would hand through as text.
    """
    written: str = convert(tex, display=display)
    environments = set(re.findall(r"\\begin\{(\w+)\}", tex))
    if "\\" in written or not environments <= ENVIRONMENTS:
        raise ExtensionError(f"the formula {tex!r} has a command that is not known; write it in another way")
    return written


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
