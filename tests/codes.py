"""Errors by their code, for `pytest.raises(..., check=coded("no-such-version"))`."""

from __future__ import annotations

from collections.abc import Callable

from qpack.core.errors import QpackError


def coded(name: str) -> Callable[[QpackError], bool]:
    """Whether an error has this code; another one fails the test with both."""

    def check(error: QpackError) -> bool:
        assert error.code.name == name, error
        return True

    return check
