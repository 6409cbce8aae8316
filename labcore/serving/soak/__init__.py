"""Many clients at once, one of them misbehaving, a server stopped and ended under load: what the others felt.

Needs httpx (extra `serve`). Asks servers on this machine only.
"""

from __future__ import annotations

from labcore.serving.soak.phases import Soak, run_soak
from labcore.serving.soak.verdict import Phase

__all__ = ["Phase", "Soak", "run_soak"]
