"""Escapes texts of a manifest for other programs' formats.

One function per format. Raises RegistryError if a format can't represent a text: a failed export is better than a wrong
one. Pure.
"""

from __future__ import annotations

import re

from qpack.core.errors import RegistryError
from qpack.core.problems import Code, Location, Problem

_SYSTEMD_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@+-]+")
_SYSTEMD_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", '"': '\\"', "%": "%%"}


def comment(text: str) -> str:
    """A line of a comment, in any format. Unprintable characters become Python escapes."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def compose(text: str) -> str:
    """A value of a compose file, where a single dollar starts a variable.

    https://github.com/compose-spec/compose-spec/blob/main/12-interpolation.md
    """
    return text.replace("$", "$$")


def kubernetes(text: str) -> str:
    """An argument or a variable's value. Kubernetes expands $(NAME), and reads $$ as one dollar.

    https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#entrypoint
    """
    return text.replace("$", "$$")


def go_template(text: str) -> str:
    """A text in Go's text/template: annotations of Prometheus, and a whole KServe object, which is JSON by then (so a
    raw string, without quotes that JSON escapes).

    https://pkg.go.dev/text/template
    """
    return text.replace("{{", "{{`{{`}}")


def systemd_value(text: str) -> str:
    """The value of a setting that is one text, such as Description (systemd.unit(5)): a percent sign starts a
    specifier, and a backslash at the end continues the line.
    """
    found = comment(text).replace("%", "%%")
    return f"{found} " if found.endswith("\\") else found


def systemd_word(text: str) -> str:
    """A word of Environment (systemd.syntax(7)), with specifiers and C escapes."""
    if text and _SYSTEMD_PLAIN.fullmatch(text):
        return text
    return '"' + "".join(_SYSTEMD_ESCAPES.get(mark) or _systemd_mark(mark) for mark in text) + '"'


def systemd_argument(text: str) -> str:
    """A word of ExecStart (systemd.service(5)), where a dollar also starts a variable."""
    return systemd_word(text).replace("$", "$$")


def _systemd_mark(mark: str) -> str:
    return mark if mark.isprintable() else "".join(f"\\x{byte:02x}" for byte in mark.encode())


def systemd_variable(name: str, value: str) -> str:
    """An assignment in Environment. systemd allows no control characters except tabs and line ends."""
    if any((ord(mark) < 32 and mark not in "\t\n") or mark == "\x7f" for mark in value):
        raise unwritable("systemd", f"environment.{name}", "a control character")
    return systemd_word(f"{name}={value}")


def dockerfile(text: str, field: str) -> str:
    """A value of ENV or LABEL: a dollar starts a variable in double quotes too, and a backslash escapes.

    https://docs.docker.com/reference/dockerfile/#environment-replacement
    """
    if not text.isprintable():
        raise unwritable("dockerfile", field, "a character that doesn't print")
    return '"' + re.sub(r'(["\\$])', r"\\\1", text) + '"'


def grafana(text: str, field: str) -> str:
    """A title or description of a dashboard. Grafana can't escape a dollar or [[."""
    if "$" in text or "[[" in text:
        raise unwritable("grafana", field, "a dollar or [[, which Grafana reads as a variable")
    return text


_UNWRITABLE = Code("unwritable", "A text of a manifest can't be written in a format of an export.")


def unwritable(form: str, field: str, what: str) -> RegistryError:
    """The error for a text that a format can't represent."""
    problem = Problem(_UNWRITABLE, f"it has {what}.", Location("serving.json", key=tuple(field.split(".", 1))))
    return RegistryError(
        _UNWRITABLE,
        f"the release can't be exported for {form}",
        hint="Use another format or another value.",
        problems=(problem,),
    )
