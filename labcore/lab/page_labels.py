"""What makes a page of the lab usable without a mouse or without sight: names, focus marks, spoken changes.

ipywidgets and plotly leave some of their controls and pictures without a name, and Python has no say in it;
a small script and a style sheet, sent with the first output of a notebook, add them in the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def labelling(bundle: dict[str, Any]) -> dict[str, Any]:
    """An output in HTML that also brings script and style to its page; sent twice, they act once."""
    script = (_HERE / "page_labels.js").read_text(encoding="utf-8")
    style = (_HERE / "page_labels.css").read_text(encoding="utf-8")
    return {**bundle, "text/html": f"{bundle['text/html']}<style>{style}</style><script>{script}</script>"}
