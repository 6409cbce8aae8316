"""The offline kit: everything a lab needs, for machines that have no network.

`build` makes it where there is a network; `install` unpacks it where there is none. What runs at install time
(`launcher`, `install`, `machine`, `manifest`, `files`, `models.place`, `progress`) needs nothing but Python's
standard library, because nothing else is there yet.

    lab-kit/
        install.py              starts the installation: python3 install.py
        READ-ME-FIRST.txt       the same in five lines
        kit.json                what the kit holds: every file's size and SHA-256, packages, machines, date
        kit.json.sha256         the checksum of that list itself
        lab/                    the project, laid out as a clone
        wheels/                 one wheel per package, shared by all machines that can use it
        models/                 models beyond the embedded ones
"""
