"""Unit tests start no process, open no connection and see nothing of the user's home: doing so is an error here."""

from __future__ import annotations

import socket
import subprocess
from typing import Any, NoReturn

import pytest

from qpack.runtime import environments


@pytest.fixture(autouse=True)
def _no_process_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **_: Any) -> NoReturn:
        raise AssertionError(f"a unit test tried to leave its process: {args!r}")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _no_home_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("QPACK_HOME", str(tmp_path_factory.getbasetemp() / "no-home"))


@pytest.fixture(autouse=True)
def _no_configuration_of_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process reads it. On another Python than the locks', each plan asks for it."""
    monkeypatch.setattr(environments, "_find_links_of_pip", lambda: "")
