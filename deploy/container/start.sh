#!/bin/sh
# Gives the home a copy of each lesson that is not there yet, then becomes the command that was asked for: in a
# container, and for each learner of a JupyterHub on one machine. It runs as the learner, so a link in the home
# leads only to what the learner may write anyway. What fails is said, and the command runs nevertheless.
set -eu
lab=$(cd "$(dirname "$0")/../.." && pwd)
mine=$HOME/lessons

say() { echo "labcore: $*" >&2; }

# A folder to write in. What else has its name keeps its content under another name.
make_room() {
    if [ -d "$mine" ] && [ ! -L "$mine" ]; then
        chmod u+rwx "$mine" || say "$mine cannot be opened for you; ask who runs the class."
    elif [ ! -d "$mine" ] || [ ! -w "$mine" ] || [ ! -x "$mine" ]; then
        if [ -e "$mine" ] || [ -L "$mine" ]; then
            mv "$mine" "$mine.put-aside-$$" && say "$mine was no folder of yours; it is now $mine.put-aside-$$."
        fi
        mkdir -p "$mine"
    fi
}

# Whole or not at all, and never over or through what is there.
copy_lessons() {
    for lesson in "$lab"/notebooks/*.ipynb; do
        copy=$mine/${lesson##*/}
        if [ -e "$copy" ] || [ -L "$copy" ]; then continue; fi
        if ! { cat "$lesson" >"$copy.part" && mv "$copy.part" "$copy"; }; then
            rm -f "$copy.part"
            say "$copy could not be written; make room, and start again."
        fi
    done
}

if [ "$(id -u)" -eq 0 ] && [ ! -O "$HOME" ]; then
    say "$HOME is not root's, so root copies no lessons there."
elif make_room; then
    copy_lessons
else
    say "$mine could not be made; make room, and start again."
fi
exec "$@"
