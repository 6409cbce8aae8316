"""`labcore wall …`: share what you found, collect what a class found, and show it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The class wall: share results, collect and show them.")

FOLDER = "LABCORE_CLASS_FOLDER"  # a class server sets it for its learners
_To = Annotated[str, typer.Option(envvar=FOLDER, help="A class folder, or a collector's address.")]
_Code = Annotated[
    str, typer.Option("--code", "--class-code", help="The class code, where the collector asks for one.")
]


@app.command()
def share(
    to: _To,
    name: Annotated[str, typer.Option(help="Shown on the wall; none: you are a number.")] = "",
    code: _Code = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Show exactly what would be shared, ask, and share it. Sharing again replaces it."""
    from labcore.lab.wall import share as sharing
    from labcore.lab.wall.entry import as_text, make_entry
    from labcore.lab.wall.membership import join

    membership = join(to, code)
    entry = make_entry(membership.id, name)
    print(as_text(entry))
    if not yes:
        typer.confirm(f"Share this, and nothing else, with {to}?", abort=True)
    others = sharing.share(entry, membership)
    print(f"Shared with {to}. To take it back: labcore wall withdraw --to {to}")
    for other in others:
        print(f"What waited for {other} went along.")


@app.command()
def withdraw(to: _To, code: _Code = "") -> None:
    """Take what this machine shared off the wall."""
    from labcore.lab.wall import share as sharing

    gone = sharing.withdraw(to, code)
    print("Taken off the wall." if gone else f"There is nothing of this machine at {to}.")


@app.command()
def collect(
    folder: Annotated[Path, typer.Option(help="Where entries are kept.")] = Path("class"),
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: the whole room.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8400,
    code: Annotated[
        str, typer.Option("--code", "--class-code", help="A class code that sharing asks for.")
    ] = "",
    most_each: Annotated[int, typer.Option(min=1, help="Entries that one address may add.")] = 100,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name of this server, as behind a proxy; may be given again.")
    ] = None,
) -> None:
    """Collect entries over HTTP and show the wall at the same address, until Ctrl-C."""
    from labcore.errors import LessonError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LessonError(f"{folder} cannot be made ({error.strerror}); choose another --folder.") from None
    _serve(folder, host, port, code, invite=True, most_each=most_each, allowed_hosts=allowed_host or ())


@app.command()
def show(
    wall: Annotated[str, typer.Argument(envvar=FOLDER, help="A class folder, or a collector's address.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any.")] = 0,
    static: Annotated[Path | None, typer.Option(help="Write the wall as one HTML file instead.")] = None,
) -> None:
    """Show the wall of a class folder on this machine, live; or write it as a file."""
    from labcore.lab.results import write_whole
    from labcore.lab.wall.membership import is_url
    from labcore.lab.wall.page import page_html, wall_data
    from labcore.lab.wall.panel import count
    from labcore.lab.wall.share import read

    entries, faults = read(wall)
    if static is not None:
        write_whole(static, page_html("", wall_data(entries, faults)))
        print(f"{static}: {count(len(entries), 'learner')}, on one page that needs no network.")
    elif is_url(wall):
        print(f"The wall: {wall}\n{count(len(entries), 'learner')} so far; open that address in a browser.")
    else:
        _serve(Path(wall).expanduser(), "127.0.0.1", port, "", invite=False)


def _serve(
    folder: Path,
    host: str,
    port: int,
    code: str,
    *,
    invite: bool,
    most_each: int = 100,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """The collector over a folder, with its address and how to share."""
    from labcore.lab.wall.clients import Clients
    from labcore.lab.wall.collector import create_app, make_server
    from labcore.lab.wall.folder import Folder
    from labcore.lab.wall.page import how_to_share
    from labcore.serving.server import bind

    with bind(host, port) as sock:
        address = f"http://{_reachable(host)}:{sock.getsockname()[1]}"
        how = how_to_share(address if invite else str(folder.resolve()), code)
        print(f"The wall: {address}\nTo share: {how}\n{_who(host, invite)} Ctrl-C ends it.", flush=True)
        clients = Clients(most_each)
        app = create_app(Folder(folder), code, how, allowed_hosts=allowed_hosts, clients=clients)
        make_server(app).run(sockets=[sock])


def _who(host: str, invite: bool) -> str:
    """One sentence: who can share."""
    if not invite:
        return "Anybody who may write into that folder shares."
    if host in ("127.0.0.1", "localhost", "::1"):
        return "Only this machine reaches it; --host 0.0.0.0 opens it to the room."
    return "Everybody in this network reaches it."


def _reachable(host: str) -> str:
    """The address that others in the room use for this machine."""
    if host not in ("0.0.0.0", "::"):
        return f"[{host}]" if ":" in host else host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: nothing is sent, a route is chosen
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])
