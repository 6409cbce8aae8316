"""`labcore kit …`: make, verify and install an offline kit."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="An offline kit: everything a lab needs, for machines without a network."
)

KitFolder = Annotated[Path, typer.Argument(help="The kit's folder.")]


class Gpu(StrEnum):
    none = "none"
    cuda = "cuda"


@app.command()
def build(
    platform: Annotated[
        list[str] | None,
        typer.Option(
            help="linux-x86_64, linux-aarch64 or macos-arm64; may be given again. Else: this machine's."
        ),
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(help="The learners' Python, such as 3.11; may be given again. Else: this one's."),
    ] = None,
    gpu: Annotated[Gpu, typer.Option(help="cuda brings torch for NVIDIA GPUs, several GB.")] = Gpu.none,
    model: Annotated[
        list[str] | None, typer.Option(help="A Hub id, a folder or a .gguf file to pack; may be given again.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The kit's folder; an interrupted build goes on there.")] = Path(
        "lab-kit"
    ),
    archive: Annotated[bool, typer.Option("--archive", help="Make one .tar of it, too.")] = False,
) -> None:
    """Make a kit. This is the only step that needs a network."""
    from labcore.kit import build as building
    from labcore.kit import machine
    from labcore.kit.files import megabytes

    order = building.Order(
        platforms=list(dict.fromkeys(platform or [machine.this_platform()])),
        pythons=list(dict.fromkeys(python or [machine.this_python()])),
        gpu=gpu.value,
        models=model or [],
    )
    command = shlex.join(["labcore", *sys.argv[1:]])
    made = building.build(order, out, command, archive)
    print(f"{out} is a kit of {len(made.files)} files, {megabytes(made.nbytes)}; its install.py installs it.")
    if archive:
        print(f"As one file: {out}.tar, with its checksum in {out}.tar.sha256.")


@app.command()
def check(kit: KitFolder) -> None:
    """Verify every file of a kit; ends with code 2 and names what is damaged or missing."""
    from labcore.kit import install as installing

    print(installing.check(kit))


@app.command()
def install(
    kit: KitFolder,
    into: Annotated[
        Path | None, typer.Option(help="The lab's folder; else inference-lab in your home.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make the environment anew; your files stay.")
    ] = False,
) -> None:
    """Install a lab from a kit, without a network; where labcore is not there yet: python3 KIT/install.py."""
    from labcore.kit import install as installing

    installing.install(kit, into or installing.default_folder(), fresh)
