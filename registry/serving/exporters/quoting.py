"""Texts of a manifest in another program's format, so that it reads them back as they are.

Each function is for one reader, and says which. Where a format has no way to write a text, RegistryError is raised: no
export is better than one that means something else. Pure.
"""

from __future__ import annotations

import re

from qpack.core.errors import Problem, RegistryError

_SYSTEMD_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@+-]+")
_SYSTEMD_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", '"': '\\"', "%": "%%"}


def comment(text: str) -> str:
    """A line of a comment, in any format: what can't be seen is written as Python's escapes."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def compose(text: str) -> str:
    """A value of a compose file, which reads a single dollar as a variable of its own.

    https://github.com/compose-spec/compose-spec/blob/main/12-interpolation.md
    """
    return text.replace("$", "$$")


def kubernetes(text: str) -> str:
    """An argument or a variable's value, in which Kubernetes expands $(NAME) and takes $$ for one dollar.

    https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#entrypoint
    """
    return text.replace("$", "$$")


def go_template(text: str) -> str:
    """A text that goes through Go's text/template: annotations of Prometheus, and the whole of a KServe object, which
    is JSON by then (so a raw string, which has no quotes that JSON would escape).

    https://pkg.go.dev/text/template
    """
    return text.replace("{{", "{{`{{`}}")


def systemd_value(text: str) -> str:
    """The right side of a setting that is one text, such as Description (systemd.unit(5)): specifiers begin with a
    percent sign, and a line that ends in a backslash goes on.
    """
    found = comment(text).replace("%", "%%")
    return f"{found} " if found.endswith("\\") else found


def systemd_word(text: str) -> str:
    """A word of Environment (systemd.syntax(7)): specifiers and C escapes are read in it."""
    if text and _SYSTEMD_PLAIN.fullmatch(text):
        return text
    return '"' + "".join(_SYSTEMD_ESCAPES.get(mark) or _systemd_mark(mark) for mark in text) + '"'


def systemd_argument(text: str) -> str:
    """A word of ExecStart (systemd.service(5)), where a dollar begins a variable too."""
    return systemd_word(text).replace("$", "$$")


def _systemd_mark(mark: str) -> str:
    return mark if mark.isprintable() else "".join(f"\\x{byte:02x}" for byte in mark.encode())


def systemd_variable(name: str, value: str) -> str:
    """An assignment of Environment. systemd takes no control characters in it but tabs and line ends."""
    if any((ord(mark) < 32 and mark not in "\t\n") or mark == "\x7f" for mark in value):
        raise unwritable("systemd", f"environment.{name}", "a control character")
    return systemd_word(f"{name}={value}")


def grafana(text: str, field: str) -> str:
    """A title or a description of a dashboard. Grafana has no way to write a dollar or [[ that isn't a variable."""
    if "$" in text or "[[" in text:
        raise unwritable("grafana", field, "a dollar or [[, which Grafana takes for a variable")
    return text


def unwritable(form: str, field: str, what: str) -> RegistryError:
    """The error of a text that a format can't hold."""
    problem = Problem(f"it has {what}.", f"serving.json: {field}")
    return RegistryError(
        f"the release can't be written for {form}", hint="Take another format, or another value.", problems=(problem,)
    )
