"""Install the lab from this folder: python3 install.py. Needs Python 3.11 or later, and no network.

Written so that older Pythons can read it, too, and say in a sentence that they are too old.
"""

import argparse
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parent


def main() -> int:
    """Read the command line and install; 0 when the lab is ready, 2 when something is to be mended first."""
    if sys.version_info < (3, 11):  # noqa: UP036
        version = ".".join(map(str, sys.version_info[:2]))
        print(
            f"The lab needs Python 3.11 or later and this is {version}; run install.py with a newer one, "
            "such as python3.12 install.py, or install one first.",
            file=sys.stderr,
        )
        return 2
    parser = argparse.ArgumentParser(description="Install the lab from this folder, without a network.")
    parser.add_argument("--into", help="the folder of the lab (without it: inference-lab in your home)")
    parser.add_argument("--fresh", action="store_true", help="make the environment anew; your files stay")
    parser.add_argument("--check", action="store_true", help="only verify this kit's files")
    chosen = parser.parse_args()
    sys.dont_write_bytecode = True  # the kit stays as it is, read-only or not
    sys.path.insert(0, str(KIT / "lab"))
    try:
        from labcore.errors import KitError
        from labcore.kit import install
    except (ImportError, SyntaxError, ValueError) as error:
        print(f"The kit's own program is damaged ({error}); copy the folder lab again.", file=sys.stderr)
        return 2
    try:
        if chosen.check:
            print(install.check(KIT))
            return 0
        into = Path(chosen.into).expanduser() if chosen.into else install.default_folder()
        install.install(KIT, into, fresh=chosen.fresh)
    except KitError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; what is done stays done. Run the same command again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
