"""Nothing from outside of a model's folder is fetched or published, however it is named there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from qpack.core.errors import QpackError, QuantizeError, RecipeError, RegistryError
from qpack.core.hashing import digest_tree
from qpack.core.store import Store
from qpack.pipeline import plan
from qpack.pipeline.stages import fetch
from qpack.recipe import recipe_file
from quantize.checkpoint import sources
from registry.core.bundle import pack
from registry.release.release_folder import missing_files
from tests.codes import coded
from tests.unit.recipes import checkpoint, workspace

SECRET = "the secret of this machine"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder, and a file beside it that is nobody's business."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "id.json").write_text(json.dumps(SECRET))
    return checkpoint(tmp_path / "ws" / "model")


def through_a_folder(model: Path) -> None:
    (model / "sub").symlink_to(model.parent.parent / "secret")
    (model / "x.json").symlink_to(model / "sub" / "id.json")


def chain(model: Path) -> None:
    (model / "hop").symlink_to(model.parent.parent / "secret" / "id.json")
    (model / "x.json").symlink_to("hop")


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda model: (model / name).symlink_to(target)


ODD: dict[str, tuple[str, Callable[[Path], None]]] = {
    "relative": ("x.json", link("x.json", "../../secret/id.json")),
    "absolute": ("x.json", lambda model: (model / "x.json").symlink_to(model.parent.parent / "secret" / "id.json")),
    "up and down": ("x.json", link("x.json", "../model/../../secret/id.json")),
    "through a folder": ("x.json", through_a_folder),
    "two links": ("x.json", chain),
    "a licence": ("LICENSE", link("LICENSE", "/etc/passwd")),
    "a notice": ("NOTICE.txt", link("NOTICE.txt", "/etc/passwd")),
    "a template": ("chat_template.jinja", link("chat_template.jinja", "/etc/passwd")),
    "code": ("modeling.py", link("modeling.py", "/etc/passwd")),
    "weights": ("model-2.safetensors", link("model-2.safetensors", "/etc/passwd")),
    "a tokenizer": ("tokenizer.model", link("tokenizer.model", "/etc/passwd")),
    "a device": ("x.json", link("x.json", "/dev/zero")),
    "the process": ("x.json", link("x.json", "/proc/self/environ")),
    "nothing": ("x.json", link("x.json", "absent.json")),
    "itself": ("x.json", link("x.json", "x.json")),
    "a folder": ("x.json", lambda model: (model / "x.json").mkdir()),
    "a folder of weights": ("m.safetensors", lambda model: (model / "m.safetensors").mkdir()),
    "a pipe": ("x.json", lambda model: os.mkfifo(model / "x.json")),
}


@pytest.mark.parametrize("what", ODD)
def test_what_leads_out_of_a_models_folder_is_refused_by_name(model: Path, what: str) -> None:
    name, make = ODD[what]
    make(model)
    found, problems = sources.find(str(model), model.parent, None)
    assert found is None
    assert [(p.code.name, Path(p.where.file).name) for p in problems] == [("not-publishable", name)]
    assert all(problem.hint for problem in problems)


def test_a_socket_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("x.json")
        assert sources.find(str(model), model.parent, None)[0] is None


def test_a_recipe_whose_model_leads_out_is_wrong(tmp_path: Path) -> None:
    path = workspace(tmp_path / "ws")
    (tmp_path / "ws" / "model" / "x.json").symlink_to("/etc/passwd")
    with pytest.raises(RecipeError) as raised:
        plan.make(recipe_file.load(path), Store(tmp_path / "home"), thorough=True)
    assert raised.value.exit_code == 2
    assert raised.value.problems[0].code.name == "not-publishable"
    assert "/etc/passwd" in raised.value.problems[0].message


def test_a_link_that_is_made_after_the_plan_is_refused_when_it_is_fetched(model: Path, tmp_path: Path) -> None:
    source, _ = sources.find(str(model), model.parent, None)
    assert source is not None
    (model / "x.json").symlink_to("/etc/passwd")
    with pytest.raises(QuantizeError) as raised:
        fetch.link(source, None, tmp_path)
    assert raised.value.exit_code == 4
    assert not (tmp_path / "checkpoint").exists()


def test_links_inside_of_the_folder_hard_links_and_folders_of_licences_are_fine(model: Path) -> None:
    (model / "real.json").write_text("{}")
    (model / "x.json").symlink_to("real.json")
    (model / "y.json").hardlink_to(model / "real.json")
    (model / "LICENSES").mkdir()
    (model.parent / "named").symlink_to(model)
    for path in (model, model.parent / "named"):
        found, problems = sources.find(str(path), model.parent, None)
        assert problems == []
        assert found is not None


def test_a_folder_of_the_hubs_cache_is_fine_and_its_neighbours_are_not(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    made = checkpoint(tmp_path / "made")
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for path in made.iterdir():
        path.rename(cache / "blobs" / f"blob-{path.name}")
        (cache / "snapshots" / "abc" / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    snapshot = cache / "snapshots" / "abc"
    assert sources.find(str(snapshot), tmp_path, None)[1] == []
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    (tmp_path / "models--org--other" / "blobs").mkdir(parents=True)
    (tmp_path / "models--org--other" / "blobs" / "x").write_text("{}")
    for target in ("../../refs/main", "../../../models--org--other/blobs/x", "../../../../etc/passwd"):
        (snapshot / "x.json").symlink_to(target)
        assert sources.find(str(snapshot), tmp_path, None)[0] is None, target
        (snapshot / "x.json").unlink()


@pytest.mark.parametrize("name", ["../secret/w.safetensors", "/etc/passwd", "sub/w.safetensors", ".."])
def test_an_index_names_files_of_its_own_folder_alone(model: Path, name: str) -> None:
    (model.parent / "secret").mkdir()
    (model.parent / "secret" / "w.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (model / "sub").mkdir()
    (model / "sub" / "w.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name, "b": "model.safetensors"}}))
    found, problems = sources.find(str(model), model.parent, None)
    assert found is None
    assert [(problem.code.name, problem.where.file) for problem in problems] == [("not-json", str(index))]
    assert name in {problem.where.file for problem in missing_files(model, model)}


def test_an_artifact_with_a_link_in_it_is_none(model: Path) -> None:
    (model / "x.json").symlink_to("config.json")
    with pytest.raises(QuantizeError, check=coded("not-a-file"), match=r"x\.json"):
        digest_tree(model, links=False)
    (model / "x.json").unlink()
    assert len(digest_tree(model, links=False)[0]) == 3


@pytest.mark.parametrize("target", ["/etc/passwd", "config.json", "absent"])
def test_a_release_folder_with_a_link_in_it_is_not_published(model: Path, target: str) -> None:
    (model / "x.json").symlink_to(target)
    with pytest.raises(RegistryError, check=coded("not-a-file"), match=r"x\.json"):
        pack(model, {})


def test_every_refusal_has_an_exit_code_of_its_own() -> None:
    assert {error.exit_code for error in (RecipeError, QuantizeError, RegistryError)} == {2, 4, 8}
    assert issubclass(RecipeError, QpackError)
