"""JupyterHub for a class on one machine: a name, a password, a folder and a user id of one's own, and equal
shares of memory, cores and GPU. Start it as root with `make hub`.

LABCORE_CLASS_BIND      where it listens                                 (http://0.0.0.0:8000)
LABCORE_CLASS_ROOT      where homes, passwords and the wall's folder are (/srv/labcore-class)
LABCORE_CLASS_AT_ONCE   learners at work at once                         (as many as fit)
LABCORE_CLASS_ADMINS    names that may see who is there and end servers  (none)
LABCORE_CLASS_PYTHON    the Python that learners run                     (this one)
"""

import os
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))

import labcore_class  # noqa: E402
from learner_spawner import LearnerSpawner  # noqa: E402

c = get_config()  # noqa: F821

clone = here.parents[1]
prefix = Path(sys.prefix)
root = Path(os.environ.get("LABCORE_CLASS_ROOT", "/srv/labcore-class"))
python = os.environ.get("LABCORE_CLASS_PYTHON", sys.executable)
hub, homes, wall = root / "hub", root / "homes", root / "wall"
labcore_class.make_rooms(root)
if os.geteuid() == 0 and (why := labcore_class.refusal(python, LearnerSpawner.first_uid.default_value)):
    sys.exit(why)
try:
    share = labcore_class.chosen_share()
except ValueError as error:
    sys.exit(str(error))

# A machine of its own: nobody else's accounts, so each learner gets a user id without one.
c.JupyterHub.spawner_class = LearnerSpawner
c.LearnerSpawner.homes = str(homes)
c.LearnerSpawner.lessons = str(clone / "notebooks")
c.Spawner.cmd = [python, "-m", "jupyterhub.singleuser"]
c.Spawner.notebook_dir = str(homes / "{username}" / "lessons")
c.Spawner.default_url = "/lab/tree/index.ipynb"
c.Spawner.start_timeout = c.Spawner.http_timeout = 180

# A name and a password of one's own, chosen at the first login.
c.JupyterHub.authenticator_class = "firstuseauthenticator.FirstUseAuthenticator"
c.FirstUseAuthenticator.dbm_path = str(hub / "passwords")
c.FirstUseAuthenticator.create_users = True
c.Authenticator.allow_all = True
c.Authenticator.admin_users = set(os.environ.get("LABCORE_CLASS_ADMINS", "").replace(",", " ").split())
c.Authenticator.username_pattern = r"[a-z0-9][a-z0-9_-]{0,31}"

labcore_class.limit(
    c,
    share,
    {
        "LABCORE_RESULTS": "~/results",
        "LABCORE_CLASS_FOLDER": str(wall),
        "JUPYTER_PATH": str(prefix / "share/jupyter"),
        "JUPYTERLAB_DIR": str(prefix / "share/jupyter/lab"),
        "JUPYTER_CONFIG_PATH": f"{clone / 'labcore/lab/jupyter_config'}:{prefix / 'etc/jupyter'}",
        "PATH": f"{Path(python).parent}:{prefix / 'bin'}:{os.environ.get('PATH', os.defpath)}",
    },
)

# Who has been idle for half an hour makes room for those who wait; what they wrote stays.
c.JupyterHub.load_roles = [
    {
        "name": "cull-idle",
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
        "services": ["cull-idle"],
    }
]
c.JupyterHub.services = [
    {"name": "cull-idle", "command": [sys.executable, "-m", "jupyterhub_idle_culler", "--timeout=1800"]}
]

c.JupyterHub.bind_url = os.environ.get("LABCORE_CLASS_BIND", "http://0.0.0.0:8000")
c.JupyterHub.db_url = f"sqlite:///{hub / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(hub / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(hub / "proxy.pid")
c.ConfigurableHTTPProxy.command = labcore_class.proxy_command(prefix)
