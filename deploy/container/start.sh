#!/bin/sh
# Gives the home a copy of each lesson that is not there yet, then becomes the command that was asked for.
set -eu
lab=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$HOME/lessons"
for lesson in "$lab"/notebooks/*.ipynb; do
    copy="$HOME/lessons/$(basename "$lesson")"
    [ -e "$copy" ] || cp "$lesson" "$copy"
done
exec "$@"
