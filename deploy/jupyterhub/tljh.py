"""The lab on The Littlest JupyterHub: link this file into /opt/tljh/config/jupyterhub_config.d.

TLJH has the accounts, the logins, the idle culler, and systemd to keep the limits; this tells it what a
learner's share of the machine is, where the lab keeps things, and what those read who have to wait.
"""

import os
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))

import labcore_class  # noqa: E402

wall = Path(os.environ.get("LABCORE_CLASS_FOLDER", "/srv/labcore-wall"))
try:
    labcore_class.make_room(wall, 0o1777)
    share = labcore_class.chosen_share()
except ValueError as error:
    sys.exit(str(error))

c = get_config()  # noqa: F821
labcore_class.limit(c, share, {"LABCORE_RESULTS": "~/results", "LABCORE_CLASS_FOLDER": str(wall)})
c.Spawner.default_url = "/lab/tree/lessons/index.ipynb"
