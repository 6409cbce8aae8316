"""axe-core on what the lab puts on a page: the outputs of cells, widgets and plots among them."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

OUTPUTS = ".jp-OutputArea-output"
GRAVE = ("serious", "critical")
THEMES = ("JupyterLab Light", "JupyterLab Dark")

# No rule is silenced: JupyterLab's menus and cells lie outside of OUTPUTS, and plotly's bar of tools passes.
_RUN = "scope => axe.run({include: [[scope]]}, {resultTypes: ['violations']})"


def use_theme(page: Page, name: str) -> None:
    """Switch JupyterLab's theme, as its settings menu does, and wait until it is there."""
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", name)
    page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=name)


def violations(page: Page, scope: str = OUTPUTS) -> list[str]:
    """What axe finds in the outputs (or in `scope`) that is serious or critical: rule, element and reason."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(Axe().axe_script)
    found = page.evaluate(_RUN, scope)["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}"
        for rule in found
        if rule["impact"] in GRAVE
        for node in rule["nodes"]
    ]
