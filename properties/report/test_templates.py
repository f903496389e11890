"""Every name in a template is given, in branches that few reports reach, too: undefined names fail only there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pytest
from common.report_helpers import CONTROL, a_report, a_trial
from jinja2 import meta, nodes

from lmc_verify.report import compare_runs, render_html, render_markdown
from lmc_verify.report.comparison.pages import comparison_html, comparison_markdown


def unknown(environment: jinja2.Environment, name: str, given: Mapping[str, Any]) -> list[str]:
    """Return the names that a template, or one that it takes in, reads and nobody gives."""
    assert environment.loader is not None
    tree = environment.parse(environment.loader.get_source(environment, name)[0])
    made = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    made |= {node.name for node in tree.find_all(nodes.Macro)}
    wrong = [
        f"{name}: {variable}"
        for variable in meta.find_undeclared_variables(tree) - made - set(given) - set(environment.globals)
    ]
    wrong += [f"{name}: |{node.name}" for node in tree.find_all(nodes.Filter) if node.name not in environment.filters]
    wrong += [f"{name}: is {node.name}" for node in tree.find_all(nodes.Test) if node.name not in environment.tests]
    for node in tree.find_all((nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends)):
        alone = isinstance(node, nodes.Import | nodes.FromImport) and not node.with_context
        wrong += unknown(environment, node.template.as_const(), {} if alone else given)
    return wrong


def test_every_name_that_a_template_reads_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: dict[str, list[str]] = {}
    original = jinja2.Template.render

    def render(self: jinja2.Template, **given: Any) -> str:
        rendered[str(self.name)] = unknown(self.environment, str(self.name), given)
        return original(self, **given)

    monkeypatch.setattr(jinja2.Template, "render", render)
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder in folders:
        folder.mkdir()
        report = a_report(folder, [a_trial(), CONTROL])
        render_html(report)
        render_markdown(report)
    made = compare_runs(*(folder / "records.sqlite" for folder in folders))
    comparison_html(made)
    comparison_markdown(made)
    assert set(rendered) == {"report.html.j2", "report.md.j2", "comparison.html.j2", "comparison.md.j2"}
    assert [name for names in rendered.values() for name in names] == []
