"""A learner without a browser: logs in, waits for a place, and runs a notebook over Jupyter's API."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import websocket

PATIENCE_S = 900  # of a learner who waits for a place, or for a cell


@dataclass
class Learner:
    """One browser's worth of cookies and the token that the hub gave for it."""

    hub: str
    name: str
    told_to_wait: list[str] = field(default_factory=list)
    token: str = ""

    def __post_init__(self) -> None:
        self.web = httpx.Client(base_url=self.hub, follow_redirects=True, timeout=PATIENCE_S, trust_env=False)

    def log_in(self, password: str, code: str = "") -> int:
        """By the login form, as a person; 302, or 403 with a wrong password or, at the first login, code."""
        assert 'name="class_code"' in self.web.get("/hub/login").text
        form = {"username": self.name, "password": password, "class_code": code, "_xsrf": self._xsrf()}
        return self.web.post("/hub/login", data=form, follow_redirects=False).status_code

    def get_token(self) -> None:
        """What scripts use in place of cookies."""
        self.web.get("/hub/token")
        made = self.web.post(
            f"/hub/api/users/{self.name}/tokens", headers={"X-XSRFToken": self._xsrf()}, json={}
        )
        made.raise_for_status()
        self.token = made.json()["token"]

    def _xsrf(self) -> str:
        found = [
            cookie.value for cookie in self.web.cookies.jar if cookie.name == "_xsrf" and "hub" in cookie.path
        ]
        return str(found[-1])

    def api(self, verb: str, path: str, **more: Any) -> httpx.Response:
        """The hub's API, or that of a server below /user/."""
        return self.web.request(verb, path, headers={"Authorization": f"token {self.token}"}, **more)

    def take_a_place(self) -> None:
        """Start one's server; while the hub says wait, keep what its page says, and try again."""
        until = time.monotonic() + PATIENCE_S
        while (page := self.web.get("/hub/spawn")).status_code == 429:
            self.told_to_wait.append(page.text)
            assert time.monotonic() < until, f"{self.name} found no place in {PATIENCE_S} s"
            time.sleep(2)
        page.raise_for_status()
        while not self.api("GET", f"/hub/api/users/{self.name}").json()["servers"].get("", {}).get("ready"):
            assert time.monotonic() < until, f"the server of {self.name} did not start"
            time.sleep(0.5)

    def leave(self) -> None:
        """Stop one's server."""
        self.api("DELETE", f"/hub/api/users/{self.name}/server").raise_for_status()
        until = time.monotonic() + PATIENCE_S
        while self.api("GET", f"/hub/api/users/{self.name}").json()["servers"]:
            assert time.monotonic() < until, f"the server of {self.name} did not stop"
            time.sleep(0.5)

    def sources(self, notebook: str) -> list[str]:
        """The code cells of a notebook in the learner's own folder."""
        found = self.api("GET", f"/user/{self.name}/api/contents/{notebook}")
        found.raise_for_status()
        return [cell["source"] for cell in found.json()["content"]["cells"] if cell["cell_type"] == "code"]

    def run(self, notebook: str, sources: list[str]) -> str:
        """Execute code in the kernel of a notebook; what the last piece printed. Fails at the first error."""
        where = f"/user/{self.name}/api"
        wanted = {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"name": "python3"}}
        begun = self.api("POST", f"{where}/sessions", json=wanted)
        begun.raise_for_status()
        kernel = begun.json()["kernel"]["id"]
        place = urlsplit(self.hub)
        address = f"ws://{place.netloc}{where}/kernels/{kernel}/channels"
        socket = websocket.create_connection(
            address, header=[f"Authorization: token {self.token}"], timeout=PATIENCE_S
        )
        try:
            printed = [_execute(socket, source) for source in sources]
        finally:
            socket.close()
        self.api("DELETE", f"{where}/sessions/{begun.json()['id']}").raise_for_status()
        return printed[-1]


def _execute(socket: websocket.WebSocket, source: str) -> str:
    """One cell, until the kernel has answered and is idle again; what it printed."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "",
              "version": "5.3"}  # fmt: skip
    content = {"code": source, "silent": False, "stop_on_error": True}
    socket.send(json.dumps(
        {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    ))  # fmt: skip
    printed, answered, idle = "", False, False
    while not (answered and idle):
        kind, message = socket.recv_data()
        if kind != websocket.ABNF.OPCODE_TEXT:  # buffers of widgets
            continue
        said = json.loads(message)
        if said["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        body = said["content"]
        if said["msg_type"] == "stream":
            printed += body["text"]
        elif said["msg_type"] == "execute_reply":
            assert body["status"] == "ok", f"{source}\n{body.get('ename')}: {body.get('evalue')}"
            answered = True
        elif said["msg_type"] == "status":
            idle = idle or body["execution_state"] == "idle"
    return printed
