"""The directive ``settings-of SECTION``: every key of one section of ``--set``, from the settings of the package."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from lmc_verify.cases.catalogue import NO_DEFAULT
from lmc_verify.cli.settings import Key, all_keys

__all__ = ["setup"]


class SettingsOf(SphinxDirective):
    """Describe the keys of a section, such as ``model``; those without one are in the section ``-``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a definition list."""
        chosen = [item for item in all_keys() if _section(item) == self.arguments[0]]
        if not chosen:
            raise self.error(f"there is no section {self.arguments[0]!r} of settings")
        lines = [line for item in chosen for line in _described(item)]
        return self.parse_text_to_nodes(StringList(lines, "settings"), allow_section_headings=False)


def _section(item: Key) -> str:
    section, dot, _ = item.setting.key.partition(".")
    return section if dot else "-"


def _described(item: Key) -> list[str]:
    setting = item.setting
    default = setting.default if setting.default == NO_DEFAULT else f"default ``{setting.default}``"
    facts = [setting.type, default, f"``{setting.range}``" if setting.range else ""]
    owners = f"Of {', '.join(f'``{name}``' for name in setting.of)}." if setting.of else ""
    return [
        f"``{setting.key}``",
        f"   {', '.join(filter(None, facts))}",
        "",
        f"   {setting.meaning} {owners}",
        "",
        f"   *{', '.join(item.commands)}*",
        "",
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("settings-of", SettingsOf)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
