"""The login of a class: a name and a password, chosen at the first login, which asks for the class code.

It needs nothing but jupyterhub-firstuseauthenticator, so that it also serves as a file of its own in the hub
of Zero to JupyterHub on Kubernetes.
"""

from __future__ import annotations

import dbm
import hmac
import re
import time
from collections import deque
from typing import Any

from firstuseauthenticator import FirstUseAuthenticator
from firstuseauthenticator.firstuseauthenticator import CustomLoginHandler
from jupyterhub.handlers import LoginHandler
from traitlets import Unicode

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")  # it becomes a folder and a part of an address
MOST_WRONG, WITHIN_S = 30, 60  # guesses from one address; a whole class may share one
_REMEMBERED = 10_000  # of the last wrong guesses
_LONGEST = 72  # bytes of a password that bcrypt reads


class ClassLoginHandler(CustomLoginHandler):
    """The login form. The parent's takes fewer arguments than JupyterHub gives for an expired form."""

    def _render(self, login_error: str | None = None, username: str | None = None, **more: Any) -> Any:
        return LoginHandler._render(self, self.custom_login_error or login_error, username, **more)


class ClassAuthenticator(FirstUseAuthenticator):
    """Who knows the code of the class takes a name that is still free. Names of instructors (`admin_users`)
    need a code of their own, for whoever has one of them may enter every learner's server."""

    class_code = Unicode(help="Asked at the first login; without one, nobody new gets in.").tag(config=True)
    instructor_code = Unicode(help="Asked in its place of those in admin_users.").tag(config=True)

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._wrong: deque[tuple[float, str]] = deque(maxlen=_REMEMBERED)

    def validate_username(self, name: str) -> bool:
        """The whole name: JupyterHub's `username_pattern` looks only at its beginning."""
        return NAME.fullmatch(name) is not None and bool(super().validate_username(name))

    def check_allowed(self, username: str, authentication: Any = None) -> bool:
        """Instructors need not be on the list of learners."""
        return username in self.admin_users or bool(super().check_allowed(username, authentication))

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        """The name, or None; the form then says why. Nothing is kept of who is refused."""
        name = self.normalize_username(data.get("username", ""))
        address, password = handler.request.remote_ip, data.get("password", "")
        entered, wanted = None, {"username": name, "password": password}
        why = self._refusal(name, password, data.get("class_code", ""), address)
        if not why:
            entered = await super().authenticate(handler, wanted)
        if entered is None:
            self._wrong.append((time.monotonic(), address))
            handler.custom_login_error = why or "This is not the password of that name."
        return entered

    def _refusal(self, name: str, password: str, code: str, address: str) -> str:
        """Why this login is not even looked up, in a sentence; empty if it is."""
        now = time.monotonic()
        if sum(1 for when, who in self._wrong if who == address and now - when < WITHIN_S) >= MOST_WRONG:
            return f"{MOST_WRONG} wrong logins came from your address; wait a minute and try again."
        if not self.validate_username(name):
            return "A name has up to 32 characters: a to z, digits, - and _, first a letter or digit."
        if self._taken(name):
            return "" if _readable(password) else "This is not the password of that name."
        if not self.check_allowed(name):
            return "This name is not on the list of the class; ask your instructor."
        wanted = self.instructor_code if name in self.admin_users else self.class_code
        if not wanted or not hmac.compare_digest(code.strip().encode(), wanted.encode()):
            return "This name is new here, and the class code is missing or wrong; ask your instructor."
        return self._fault(password)

    def reset_password(self, username: str, new_password: str) -> str:
        """Change it, unless it is none; what the page then says."""
        return self._fault(new_password) or str(super().reset_password(username, new_password))

    def _fault(self, password: str) -> str:
        if len(password) < self.min_password_length or not _readable(password):
            least = self.min_password_length
            return f"A password has {least} characters or more, and {_LONGEST} bytes at most."
        return ""

    def _taken(self, name: str) -> bool:
        with dbm.open(self.dbm_path, "c", 0o600) as passwords:
            return name.encode() in passwords

    def get_handlers(self, app: Any) -> list[tuple[str, Any]]:
        """With a form that knows the class code."""
        return [
            (path, ClassLoginHandler if handler is CustomLoginHandler else handler)
            for path, handler in super().get_handlers(app)
        ]


def _readable(password: str) -> bool:
    """Whether bcrypt takes it."""
    return len(password.encode()) <= _LONGEST and "\0" not in password
