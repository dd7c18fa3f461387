"""What the readers of exports make of them: systemd's own words, kubelet's expansion, a shell, Go's templates."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import PATIENCE


def systemd_library() -> ctypes.CDLL:
    """systemd's own code, which every program of it shares."""
    found = sorted(Path("/usr/lib").glob("**/libsystemd-shared-*.so"))
    if not found:
        pytest.skip("systemd is not here (Debian package systemd)")
    return ctypes.CDLL(str(found[-1]))


# EXTRACT_CUNESCAPE and EXTRACT_UNQUOTE of systemd's extract-word.h: with both it reads ExecStart and Environment.
_EXTRACT = 2 | 32


def systemd_words(library: ctypes.CDLL, text: str) -> list[str]:
    """The words of a setting, read by systemd's own extract_first_word; then specifiers, of which only %% is there."""
    buffer = ctypes.create_string_buffer(text.encode())
    rest, word, found = ctypes.c_char_p(ctypes.addressof(buffer)), ctypes.c_char_p(), []
    while (code := library.extract_first_word(ctypes.byref(rest), ctypes.byref(word), None, _EXTRACT)) > 0:
        assert word.value is not None
        found.append(undoubled(word.value.decode(), "%"))
    assert code == 0, text
    return found


def undoubled(text: str, mark: str) -> str:
    """The text with each pair of marks as one; a single one would begin a variable or a specifier."""
    assert mark not in text.replace(mark * 2, ""), text
    return text.replace(mark * 2, mark)


def systemd_settings(unit: str) -> dict[str, list[str]]:
    """A unit's settings: a line that ends in a backslash goes on (systemd.syntax(7))."""
    found: dict[str, list[str]] = {}
    for line in unit.replace("\\\n", " ").splitlines():
        if line and line[0] not in "#;[":
            name, _, value = line.partition("=")
            found.setdefault(name.strip(), []).append(value.strip())
    return found


def kubelet(text: str, variables: Mapping[str, str]) -> str:
    """Kubernetes' expansion of arguments and variables, after third_party/forked/golang/expansion/expand.go."""
    found, at = "", 0
    while at < len(text):
        mark, after = text[at], text[at + 1 : at + 2]
        if mark != "$" or not after:
            found, at = found + mark, at + 1
        elif after == "$":
            found, at = found + "$", at + 2
        elif after == "(" and (end := text.find(")", at)) > 0:
            name = text[at + 2 : end]
            found, at = found + variables.get(name, f"$({name})"), end + 1
        else:
            found, at = found + mark + after, at + 2
    return found


def shell_words(script: Path, folder: Path, *arguments: str) -> list[str]:
    """What a shell hands to `docker` when it runs the script."""
    docker = folder / "bin" / "docker"
    if not docker.exists():
        docker.parent.mkdir(exist_ok=True)
        docker.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
        docker.chmod(0o755)
    done = subprocess.run(
        ["sh", str(script), *arguments],
        env={"PATH": f"{docker.parent}:/usr/bin:/bin"},
        capture_output=True,
        cwd=folder,
        timeout=PATIENCE,
        check=True,
    )
    return done.stdout.decode().split("\0")[:-1]


def evaluated(arguments: str) -> list[str]:
    """The words of VLLM_ADDITIONAL_ARGS as KServe's template has bash evaluate them."""
    command = ["bash", "-c", "eval \"printf '%s\\0' ${VLLM_ADDITIONAL_ARGS}\""]
    done = subprocess.run(
        command, env={"VLLM_ADDITIONAL_ARGS": arguments}, capture_output=True, timeout=PATIENCE, check=True
    )
    return done.stdout.decode().split("\0")[:-1]


def sourced(file: Path) -> dict[str, str]:
    """The variables that a shell has after it read the file."""
    command = ["bash", "-c", 'set -a; . "$1"; set +a; exec env -0', "bash", str(file)]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, timeout=PATIENCE, check=True)
    return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0")[:-1])


_RAW = "{{`{{`}}"


def go_templated(value: Any) -> Any:
    """A KServe object after its template was executed: no action is in it but the raw strings that stand for braces."""
    if isinstance(value, dict):
        return {go_templated(key): go_templated(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [go_templated(inner) for inner in value]
    if not isinstance(value, str):
        return value
    assert "{{" not in re.sub(re.escape(_RAW), "", value), value
    return value.replace(_RAW, "{{")


def alerts_that_say(templates: Sequence[str], texts: Sequence[str], folder: Path, promtool: str) -> str:
    """What promtool says of alerts with `templates` in an annotation, if they are to say `texts`: nothing but SUCCESS
    when Go's template engine makes the one of the other.
    """
    rules = [
        {"alert": f"A{number}", "expr": "vector(1)", "annotations": {"said": template}}
        for number, template in enumerate(templates)
    ]
    cases = [
        {"eval_time": "1m", "alertname": f"A{number}", "exp_alerts": [{"exp_annotations": {"said": text}}]}
        for number, text in enumerate(texts)
    ]
    tests = {"rule_files": ["made.yml"], "tests": [{"interval": "1m", "input_series": [], "alert_rule_test": cases}]}
    # Not as JSON: YAML doesn't read its surrogate pairs, which stand for characters beyond the basic plane.
    (folder / "made.yml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}), "utf-8")
    (folder / "test.yml").write_text(yaml.safe_dump(tests), "utf-8")
    command = [promtool, "test", "rules", "test.yml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.stdout + done.stderr
