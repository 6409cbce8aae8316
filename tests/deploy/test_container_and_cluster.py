"""Image and chart values, held against the files that they name; no Docker and no cluster needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.shipped import load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "container" / "Dockerfile").read_text(encoding="utf-8")
KUBERNETES = DEPLOY / "kubernetes"


def _documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8")))


def _values() -> Any:
    (values,) = _documents("values.yaml")
    return values


def _instructions(word: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(f"{word} ")]


def test_the_image_copies_what_there_is_and_lets_it_through() -> None:
    copied = [part for line in _instructions("COPY") for part in line.split()[:-1]]
    assert {"labcore", "data", "notebooks", "deploy", "pyproject.toml"} <= set(copied)
    ignored = (DEPLOY / "container" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    for part in copied:
        assert (ROOT / part).exists(), part
        assert f"!{part}" in ignored, part


def test_the_image_installs_extras_that_there_are_and_does_not_run_as_root() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (asked,) = re.findall(r"'\.\[([a-z,]+)\]'", DOCKERFILE)
    assert set(asked.split(",")) <= set(extras["optional-dependencies"])
    assert _instructions("USER") == ["jovyan"]
    after = DOCKERFILE[DOCKERFILE.index("\nUSER jovyan") :]
    assert "\nENTRYPOINT " in after
    assert not re.search(r"^(USER|RUN|COPY|ADD|VOLUME) ", after.replace("\nUSER jovyan", ""), re.MULTILINE)
    (entry,) = re.findall(r'ENTRYPOINT \["(.+)"\]', DOCKERFILE)
    script = ROOT / Path(entry).relative_to("/opt/labcore")
    assert os.access(script, os.X_OK)
    (config,) = re.findall(r"JUPYTER_CONFIG_PATH=/opt/labcore/(\S+)", DOCKERFILE)
    assert (ROOT / config / "jupyter_lab_config.json").is_file()


def test_the_start_script_fills_a_home_and_keeps_what_is_there(tmp_path: Path) -> None:
    lessons = tmp_path / "lessons"
    lessons.mkdir()
    (lessons / "index.ipynb").write_text("mine")
    words = [str(DEPLOY / "container" / "start.sh"), "sh", "-c", "echo started as $0 in $HOME; exit 7"]
    done = subprocess.run(words, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, f"started as sh in {tmp_path}\n")
    assert {path.name for path in lessons.iterdir()} == {path.name for path in ROOT.glob("notebooks/*.ipynb")}
    assert (lessons / "index.ipynb").read_text() == "mine"


def test_the_start_script_begins_although_the_lessons_cannot_be_copied(tmp_path: Path) -> None:
    """A disk without room, or a home that is no folder: said, and the server starts."""
    (tmp_path / "home").write_text("no folder")
    words = [str(DEPLOY / "container" / "start.sh"), "echo", "started"]
    home = {"HOME": str(tmp_path / "home")}
    done = subprocess.run(words, env=os.environ | home, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert f"labcore: {tmp_path}/home/lessons could not be made; make room" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root in another's home")
def test_the_start_script_does_nothing_as_root_in_anothers_home(tmp_path: Path) -> None:
    (tmp_path / "lessons").symlink_to(tmp_path / "made")
    os.chown(tmp_path, 71_300, 71_300)
    words = [str(DEPLOY / "container" / "start.sh"), "echo", "started"]
    done = subprocess.run(words, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert f"{tmp_path} is not root's, so root copies no lessons there." in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["lessons"]
    assert (tmp_path / "lessons").is_symlink()


@pytest.mark.parametrize("name", ["values.yaml", "wall.yaml", "gpu-sharing.yaml"])
def test_every_file_is_yaml_and_named_by_the_guide(name: str) -> None:
    assert all(isinstance(one, dict) for one in _documents(name))
    assert name in (KUBERNETES / "README.md").read_text(encoding="utf-8")


def test_values_agree_with_the_image_the_page_and_each_other() -> None:
    values, guide = _values(), (KUBERNETES / "README.md").read_text(encoding="utf-8")
    hub, learner = values["hub"], values["singleuser"]
    assert hub["templateVars"]["labcore_at_once"] == hub["activeServerLimit"]
    assert "labcore_at_once" in (DEPLOY / "jupyterhub/templates/error.html").read_text(encoding="utf-8")
    (place,) = hub["templatePaths"]
    for name, file in hub["extraFiles"].items():
        (text,) = re.findall(rf"--set-file hub\.extraFiles\.{name}\.stringData=(\S+)", guide)
        assert file["mountPath"] == f"{place}/{(ROOT / text).name}"
        assert (ROOT / text).is_file()
    assert int(learner["extraEnv"]["OMP_NUM_THREADS"]) == learner["cpu"]["limit"]
    assert learner["defaultUrl"] == "/lab/tree/lessons/index.ipynb"


def test_learners_share_with_the_wall_over_http_and_no_folder_with_each_other() -> None:
    """All pods are the same user: in a shared folder, anybody could delete what others shared."""
    learner, wall = _values()["singleuser"], {one["kind"]: one for one in _documents("wall.yaml")}
    assert not {"extraVolumes", "extraVolumeMounts"} & set(learner["storage"])
    assert wall["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    pod = wall["Deployment"]["spec"]["template"]
    (container,), (volume,) = pod["spec"]["containers"], pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == wall["PersistentVolumeClaim"]["metadata"]["name"]
    port = int(container["command"][container["command"].index("--port") + 1])
    assert container["volumeMounts"][0]["mountPath"] in container["command"]
    assert (
        learner["extraEnv"]["LABCORE_CLASS_FOLDER"] == f"http://{wall['Service']['metadata']['name']}:{port}"
    )
    assert wall["Service"]["spec"]["ports"] == [{"port": port, "targetPort": port}]
    policy, (way_out,) = wall["NetworkPolicy"]["spec"], learner["networkPolicy"]["egress"]
    labels = pod["metadata"]["labels"]
    for selector in (wall["Service"]["spec"]["selector"], policy["podSelector"]["matchLabels"],
                     wall["Deployment"]["spec"]["selector"]["matchLabels"],
                     way_out["to"][0]["podSelector"]["matchLabels"]):  # fmt: skip
        assert selector == labels
    assert policy["ingress"][0]["ports"] == way_out["ports"] == [{"port": port, "protocol": "TCP"}]
    image = _values()["singleuser"]["image"]
    assert container["image"] == f"{image['name']}:{image['tag']}"


def test_the_command_of_the_wall_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its options, as the command line takes them."""
    from typer.testing import CliRunner

    from labcore import wall_cli

    (deployment,) = [one for one in _documents("wall.yaml") if one["kind"] == "Deployment"]
    _, _, *words = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    served: list[Any] = []
    monkeypatch.setattr(wall_cli, "_serve", lambda *args, **more: served.append(args))
    words = [str(tmp_path) if word == "/srv/wall" else word for word in words]
    assert CliRunner().invoke(wall_cli.app, words).exit_code == 0
    assert served == [(tmp_path, "0.0.0.0", 8400, "")]


def test_the_cluster_asks_for_the_class_code_and_opens_nothing_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("firstuseauthenticator")
    login = load("class_login")
    values, c = _values(), pytest.importorskip("traitlets.config").Config()
    monkeypatch.setenv("LABCORE_CLASS_CODE", "swordfish")
    monkeypatch.delenv("LABCORE_CLASS_INSTRUCTOR_CODE", raising=False)
    monkeypatch.setattr("sys.path", [*sys.path])
    exec(values["hub"]["extraConfig"]["login"], {"c": c})
    assert c.JupyterHub.authenticator_class is login.ClassAuthenticator
    assert (c.ClassAuthenticator.class_code, c.ClassAuthenticator.instructor_code) == ("swordfish", "")
    (where,) = re.findall(r'insert\(0, "(.+)"\)', values["hub"]["extraConfig"]["login"])
    assert values["hub"]["extraFiles"]["login"]["mountPath"] == f"{where}/class_login.py"
    settings = login.ClassAuthenticator.class_trait_names()
    assert set(values["hub"]["config"]["ClassAuthenticator"]) <= set(settings)
    keys = {name: one["valueFrom"]["secretKeyRef"] for name, one in values["hub"]["extraEnv"].items()}
    guide = (KUBERNETES / "README.md").read_text(encoding="utf-8")
    for key in keys.values():
        assert f"--from-literal={key['key']}=" in guide
        assert f"secret generic {key['name']} " in guide
    assert not keys["LABCORE_CLASS_CODE"].get("optional")
    assert values["proxy"]["service"]["type"] == "ClusterIP"


def test_parts_of_a_gpu_leave_room_for_what_the_driver_takes() -> None:
    sharing = yaml.safe_load((KUBERNETES / "gpu-sharing.yaml").read_text(encoding="utf-8"))["sharing"]
    (resource,) = sharing["timeSlicing"]["resources"]
    profile = _values()["singleuser"]["profileList"][1]["kubespawner_override"]
    assert resource["name"] in profile["extra_resource_limits"]
    share = float(profile["environment"]["LABCORE_GPU_MEMORY_LIMIT"].rstrip("%")) / 100
    assert share * resource["replicas"] <= 0.8
