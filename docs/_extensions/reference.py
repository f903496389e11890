"""The directives of the reference: ``public-names PAGE`` documents a page's names, ``name-index`` lists all of them."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator

from docutils import nodes
from docutils.statemachine import StringList
from public_names import PAGES, pages
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from lmc_verify.claims import Assumption
from lmc_verify.estimators import LOSS_WEIGHTINGS

__all__ = ["setup"]


class PublicNames(SphinxDirective):
    """Document every public name of a page from its docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the nodes of every name."""
        lines = [line for name in pages()[self.arguments[0]] for line in _documented(name)]
        return self.parse_text_to_nodes(StringList(lines, self.arguments[0]), allow_section_headings=False)


class NameIndex(SphinxDirective):
    """List every name of the package itself, with its first line."""

    def run(self) -> list[nodes.Node]:
        """Return a table."""
        lines = [".. list-table::", "   :widths: 30 70", ""]
        listed = sorted((name for names in pages().values() for name in names if name.count(".") == 1), key=str.lower)
        for name in listed:
            item = _item(name)
            summary = (inspect.getdoc(item) or "").partition("\n\n")[0] if _has_own_doc(item) else _comment(name)[0]
            lines += [f"   * - :py:obj:`~{name}`", f"     - {' '.join(summary.split())}"]
        return self.parse_text_to_nodes(StringList(lines, "names"), allow_section_headings=False)


def _item(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def _has_own_doc(item: object) -> bool:
    return inspect.isclass(item) or inspect.isroutine(item)


def _documented(name: str) -> Iterator[str]:
    item = _item(name)
    if inspect.isclass(item):
        yield from (f".. autoclass:: {name}", "   :members:", "   :show-inheritance:", "")
    elif inspect.isroutine(item):
        yield from (f".. autofunction:: {name}", "")
    else:
        yield from (f".. py:data:: {name}", "", *(f"   {line}" for line in _comment(name)), "")


def _comment(name: str) -> list[str]:
    """Return the docstring below a constant, from the module that defines it; an assumption states itself."""
    item, last = _item(name), name.rpartition(".")[2]
    if isinstance(item, Assumption):
        return [f"``{item.id}``: {item.statement}."]
    if item is LOSS_WEIGHTINGS and last != "LOSS_WEIGHTINGS":
        return ["The former name of `lmc_verify.estimators.LOSS_WEIGHTINGS`."]
    for module in sorted(module for module in sys.modules if module.startswith("lmc_verify.")):
        if getattr(sys.modules[module], last, None) is not item:
            continue
        found = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", last))
        if found:
            return found
    raise LookupError(f"{name} has no docstring; write one below its definition")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    assert set(PAGES) == set(pages())
    app.add_directive("public-names", PublicNames)
    app.add_directive("name-index", NameIndex)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
