"""What the interpreter that runs this can import, by content: `python -I installed.py [--full]`, JSON on stdout.

    {"python": "3.11.9", "packages": {name: version}, "digest": "...", "changed": [path], "extra": [path],
     "roots": [folder]}

`digest` is over every file of every folder that modules are found in, in the order in which Python looks, and of the
source folders of editable installs. A wheel's RECORD names the SHA-256 of its files (PEP 376), so a file is read only
where it may be another one by now: its size isn't what RECORD says, it was touched after RECORD was written, or no
RECORD has it. With `--full` all are read; `changed` are files that aren't as RECORD says, `extra` those that no RECORD
has.

Standard library alone, and no syntax newer than Python 3.9.
"""

import base64
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import sysconfig
import urllib.parse
import urllib.request

# Made by Python from the sources, again whenever those are newer. Compiled files elsewhere are modules like others.
COMPILED = "__pycache__"
# Written by installers about the installation, not part of what is imported.
NOTES = ("RECORD", "INSTALLER", "REQUESTED", "uv_cache.json")
# What a source folder may hold and Python or a library reads; a checkout has a great deal more.
READ = (".py", ".pyc", ".so", ".pyx", ".json", ".yaml", ".yml", ".toml", ".jinja", ".cu", ".cuh", ".h")


def main(full):
    """Print the answer."""
    found = {"python": platform.python_version(), "packages": {}, "changed": [], "extra": []}
    whole = hashlib.sha256(f"{sys.version} {platform.machine()}\n".encode())
    seen = set()
    for root in roots():
        recorded = records(root, found["packages"])
        site = os.path.basename(root) in ("site-packages", "dist-packages")
        for path in files(root, seen, None if site else READ):
            relative = os.path.relpath(path, root)
            state = os.stat(path)
            digest, size, written = recorded.pop(relative, (None, None, 0))
            # The time of modification can be set back (`touch -r`), that of the last change of the file can't.
            touched = max(state.st_mtime_ns, state.st_ctime_ns)
            known = digest is not None and size == state.st_size and touched <= written
            content = digest if known and not full else read(path)
            note = os.path.basename(path) in NOTES and os.path.dirname(path).endswith(".dist-info")
            if digest is None and site and not note:
                found["extra"].append(path)
            elif digest is not None and content != digest:
                found["changed"].append(path)
            if not note:
                whole.update(f"{relative}\0{content}\n".encode(errors="surrogateescape"))
        whole.update(b"\n")
        found["changed"] += [os.path.join(root, missing) for missing in sorted(recorded)]
    found["roots"] = roots()
    json.dump({**found, "digest": whole.hexdigest()}, sys.stdout)


def roots():
    """The folders that modules are found in, first come first served, without the standard library's, and after them
    the source folders of editable installs.
    """
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(__file__)}
    standard |= {os.path.join(path, "lib-dynload") for path in list(standard)}
    found = [path for path in sys.path if os.path.isdir(path) and path not in standard]
    for path in list(found):
        for distribution in importlib.metadata.distributions(path=[path]):
            try:
                where = json.loads(distribution.read_text("direct_url.json") or "{}")
                address = urllib.parse.urlsplit(where.get("url", ""))
                editable = where.get("dir_info", {}).get("editable") and address.scheme == "file"
            except (ValueError, AttributeError):
                continue
            source = urllib.request.url2pathname(address.path) if editable else None
            if source and source not in found and os.path.isdir(source):
                found.append(source)
    return found


def records(root, packages):
    """{path below `root`: (SHA-256, size, when RECORD was written in ns)} of all that RECORD files name there. Names
    and versions go into `packages`; a distribution that an earlier folder has is shadowed, as for an import.
    """
    found = {}
    here = {}
    for distribution in importlib.metadata.distributions(path=[root]):
        name = distribution.metadata["Name"]
        if name:
            here.setdefault(re.sub(r"[-_.]+", "-", name).lower(), (name, str(distribution.version)))
        folder = getattr(distribution, "_path", None)
        record = os.path.join(str(folder), "RECORD")
        if folder is None or not os.path.isfile(record):
            continue
        written = os.stat(record).st_mtime_ns
        with open(record, encoding="utf-8", errors="surrogateescape", newline="") as file:
            for row in csv.reader(file):
                if len(row) < 3 or not row[1].startswith("sha256=") or not row[2].isdigit():
                    continue
                path = os.path.normpath(row[0])
                if not path.startswith(("..", os.sep)) and COMPILED not in path.split(os.sep):
                    digest = base64.urlsafe_b64decode(row[1][7:] + "==").hex()
                    found[path] = (digest, int(row[2]), written)
    known = {re.sub(r"[-_.]+", "-", name).lower() for name in packages}
    packages.update(dict(value for key, value in here.items() if key not in known))
    return found


def files(root, seen, endings):
    """Every file below `root` that isn't compiled Python, sorted; with `endings` those alone. Links are followed, and a
    folder that was seen by another way isn't read again.
    """
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        # Of a checkout, its history and its tools' caches are nothing that is imported.
        folders[:] = sorted(n for n in folders if n != COMPILED and not (endings and n.startswith(".")))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if (endings is None or name.endswith(endings)) and os.path.isfile(path):
                yield path


def read(path):
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


if __name__ == "__main__":
    main("--full" in sys.argv[1:])
