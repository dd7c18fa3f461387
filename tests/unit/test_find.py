"""Claims about looking a release up."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpack.errors import RegistryError
from qpack.find import read_release
from registry.local import LocalRegistry


def test_a_record_of_another_version_is_an_error_that_says_so_and_no_bug(tmp_path: Path):
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "release.json").write_text('{"api_version": "qpack/v1", "name": "old"}')
    (folder / "serving.json").write_text("{}")
    LocalRegistry(tmp_path / "registry").push(folder, "old", None, "latest", annotations={}, actor="test")
    with pytest.raises(RegistryError) as caught:
        read_release(tmp_path / "registry", "old")
    assert "old:1 was written by another version of qpack: created: Field required" in caught.value.what
    assert "qpack pull" in caught.value.hint
