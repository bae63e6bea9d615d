"""
Sphinx's configuration: C{sphinx-build -W --keep-going -b html docs OUT}.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
CHECKOUT = DOCS.parent
# The pages describe this checkout, and pydoctor imports apidocs.
sys.path[:0] = [str(CHECKOUT), str(DOCS)]

import pop3svc  # noqa: E402
from pop3svc.metrics.declarations import METRICS  # noqa: E402
from pop3svc.service.settings import GROUPS  # noqa: E402

project = "pop3svc"
author = "the maintainers of pop3svc"
release = version = pop3svc.__version__
extensions = ["sphinx.ext.intersphinx", "pydoctor.sphinx_ext.build_apidocs"]
html_theme = "furo"
html_title = f"pop3svc {release}"
html_show_copyright = False
html_show_sphinx = False
highlight_language = "none"
exclude_patterns = ["_build"]

pydoctor_args = [
    # The Sphinx extension turns everything that is printed into a warning.
    "--quiet",
    "--docformat=epytext",
    "--theme=readthedocs",
    "--system-class=apidocs.ImportingSystem",
    "--project-name=pop3svc",
    f"--project-version={release}",
    f"--project-base-dir={CHECKOUT}",
    "--html-output={outdir}/api",
    str(CHECKOUT / "pop3svc"),
]
pydoctor_url_path = "api"


class Settings(Directive):
    """
    List the settings of a group with their kinds, defaults and reasons.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """
        @return: a definition list with an item for each setting.
        """
        group = self.arguments[0]
        items = nodes.definition_list()
        for setting in GROUPS[group]:
            term = nodes.term(
                "", "", nodes.literal("", setting.name), ids=[f"{group}-{setting.name}"]
            )
            kind = setting.kind.name
            if group == "limits":
                kind += f", default {setting.default}"
            if setting.isLive:
                kind += ", taken by a running service"
            text = nodes.paragraph("", f"{setting.help}  {setting.reason}".strip())
            entry = nodes.definition_list_item(
                "", term, nodes.classifier("", kind), nodes.definition("", text)
            )
            # Sphinx computes the lines of terms from those of their items.
            entry.source, entry.line = self.state_machine.get_source_and_line(self.lineno)
            items += entry
        return [items]


class Metrics(Directive):
    """
    List the metrics with their labels.
    """

    def run(self) -> list[nodes.Node]:
        """
        @return: a definition list with an item for each metric.
        """
        items = nodes.definition_list()
        for metric in METRICS:
            term = nodes.term("", "", nodes.literal("", metric.name))
            kind = metric.kind
            if metric.labels:
                kind += f" by {' and '.join(metric.labels)}"
            text = nodes.paragraph("", metric.help)
            entry = nodes.definition_list_item(
                "", term, nodes.classifier("", kind), nodes.definition("", text)
            )
            entry.source, entry.line = self.state_machine.get_source_and_line(self.lineno)
            items += entry
        return [items]


def setup(app: Sphinx) -> None:
    """
    Register the directives C{settings} and C{metrics}.
    """
    app.add_directive("settings", Settings)
    app.add_directive("metrics", Metrics)
