"""One OCI registry for all tests: each works in repositories of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.oci_server import Server, serving


@pytest.fixture(scope="session")
def oci_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("oci")) as server:
        yield server
