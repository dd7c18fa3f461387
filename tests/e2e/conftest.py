"""The same real, very small model as in the scenarios."""

from tests.scenarios.conftest import tiny_model

__all__ = ["tiny_model"]
