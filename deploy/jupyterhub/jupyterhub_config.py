"""JupyterHub for a class on one machine: a name, a password, a folder and a user id of one's own, and equal
shares of memory, cores and GPU. Start it as root with `make hub`.

LABCORE_CLASS_BIND      where it listens        (http://127.0.0.1:8000; with TLS https://0.0.0.0:8000)
LABCORE_CLASS_TLS_CERT, LABCORE_CLASS_TLS_KEY   files in PEM form        (none)
LABCORE_CLASS_CODE      what a new learner must know                     (made, and kept in hub/class_code)
LABCORE_CLASS_LEARNERS  the only names that get in                       (any, with the code)
LABCORE_CLASS_SUBDOMAIN_HOST  https://NAME, so that each learner has a subdomain of it (one origin for all)
LABCORE_CLASS_ROOT      where homes, passwords and the wall's folder are (/srv/labcore-class)
LABCORE_CLASS_AT_ONCE   learners at work at once                         (as many as fit)
LABCORE_CLASS_ADMINS    names that may see who is there and end servers  (none)
LABCORE_CLASS_INSTRUCTOR_CODE  what these must know in place of the code (made, and kept beside it)
LABCORE_CLASS_PYTHON    the Python that learners run                     (this one)
"""

import os
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))

import class_door  # noqa: E402
import labcore_class  # noqa: E402
from class_login import ClassAuthenticator  # noqa: E402
from learner_spawner import LearnerSpawner  # noqa: E402

c = get_config()  # noqa: F821

clone = here.parents[1]
prefix = Path(sys.prefix)
root = Path(os.environ.get("LABCORE_CLASS_ROOT", "/srv/labcore-class"))
python = os.environ.get("LABCORE_CLASS_PYTHON", sys.executable)
hub, homes, wall = root / "hub", root / "homes", root / "wall"
start = clone / "deploy/container/start.sh"
files = (start, clone / "notebooks/index.ipynb")
somebody = LearnerSpawner.first_uid.default_value
if os.geteuid() == 0 and (why := labcore_class.refusal(python, somebody, files)):
    sys.exit(why)
learners, instructors = (
    frozenset(os.environ.get(f"LABCORE_CLASS_{who}", "").replace(",", " ").lower().split())
    for who in ("LEARNERS", "ADMINS")
)
try:
    labcore_class.make_rooms(root)
    share = labcore_class.chosen_share()
    door = class_door.chosen_door()
    word = class_door.code(hub / "class_code", os.environ.get("LABCORE_CLASS_CODE", ""))
    their_word = instructors and class_door.code(
        hub / "instructor_code", os.environ.get("LABCORE_CLASS_INSTRUCTOR_CODE", "")
    )
except ValueError as error:
    sys.exit(str(error))
print(class_door.invitation(door, word, instructors, their_word or ""), flush=True)

# A machine of its own: nobody else's accounts, so each learner gets a user id without one.
c.JupyterHub.spawner_class = LearnerSpawner
c.LearnerSpawner.homes = str(homes)
# The lessons are copied by the learner's own process, never by root.
c.Spawner.cmd = ["/bin/sh", str(start), python, "-m", "jupyterhub.singleuser"]
c.Spawner.notebook_dir = str(homes / "{username}" / "lessons")
c.Spawner.default_url = "/lab/tree/index.ipynb"
c.Spawner.start_timeout = c.Spawner.http_timeout = 180

# A name and a password of one's own, chosen at the first login by who knows the code.
c.JupyterHub.authenticator_class = ClassAuthenticator
c.ClassAuthenticator.dbm_path = str(hub / "passwords")
c.ClassAuthenticator.class_code = word
c.ClassAuthenticator.instructor_code = their_word or ""
c.Authenticator.allow_all = not learners
c.Authenticator.allowed_users = set(learners)
c.Authenticator.allow_existing_users = False  # the list says who, not who was there before
c.Authenticator.admin_users = set(instructors)

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

c.JupyterHub.template_paths += [str(here / "templates/class_login")]  # a login form that asks for the code

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

c.JupyterHub.bind_url = door.bind
c.JupyterHub.ssl_cert, c.JupyterHub.ssl_key = door.cert, door.key
c.JupyterHub.subdomain_host = door.own_names
c.JupyterHub.db_url = f"sqlite:///{hub / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(hub / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(hub / "proxy.pid")
c.ConfigurableHTTPProxy.command = labcore_class.proxy_command(prefix)
