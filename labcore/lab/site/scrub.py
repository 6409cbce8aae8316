"""Take the folders of the machine that built a page out of its texts."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from labcore.lab import runner


def scrubber(runs: Path) -> Callable[[str], str]:
    """A function that writes known folders as names: the longest first, so that inner ones are found.

    Only whole path components are meant: a home of "/root" leaves "/roots" alone.
    """
    known = {
        str(runs.resolve()): "runs",
        str(runner.notebooks_dir().parent.resolve()): "lab",
        str(Path.home()): "~",
        str(Path(tempfile.gettempdir()).resolve()): "temporary",
    }
    ordered = sorted((path for path in known if path != "/"), key=len, reverse=True)
    pattern = re.compile("(?:" + "|".join(map(re.escape, ordered)) + r")(?![\w-])")
    return lambda words: pattern.sub(lambda found: known[found[0]], words)
