"""A stranger's checkpoint: whatever is in its files, there is a located problem or the right answer."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from qpack.core.problems import Problem
from quantize.checkpoint import from_config, gguf, headers, model_config, sources
from quantize.doctor import checkup, repair
from quantize.engines.catalog import ENGINES
from quantize.engines.protocol import Override, Request
from quantize.preflight import preflight, targets
from tests.fuzz import strategies_checkpoint as near
from tests.fuzz.law import counted, fuzz, refused_or_read
from tests.unit import packed

METHODS = ("awq", "gptq", None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, tuple[dict[str, Any], bytes]]:
    """Headers and data of a small checkpoint in each format."""
    folder = tmp_path_factory.mktemp("valid")
    return {
        method: near.parts(packed.checkpoint(folder / str(method), method) / "model.safetensors") for method in METHODS
    }


def located(problems: list[Problem], *places: str) -> None:
    """Every problem names one of the places and says something of it."""
    for problem in problems:
        assert problem.message
        assert any(place in str(problem.where) for place in places), problem
        str(problem).encode()
    counted["refused" if problems else "read"] += 1


def request(engine: str, scheme: str, ignore: tuple[str, ...] = ("lm_head",), **more: Any) -> Request:
    method = {"W8A8": "rtn", "BF16": "none"}.get(scheme, "gptq")
    group = 32 if scheme.startswith("W4") else None
    form = ENGINES[engine].FORMATS[0]
    return Request(*(method, scheme, group, ignore, 0.01, False), format=form, target="cpu", tensor_parallel=1, **more)


_DOWN = (Override("re:.*down.*", "W8A8", None),)
REQUESTS = [
    request("llmcompressor", "W4A16"),
    request("llmcompressor", "W8A8", ()),
    request("llmcompressor", "W4A16", ("re:.*q_proj",), overrides=_DOWN, kv_cache="fp8"),
    request("gram", "W4A16"),
    request("autoawq", "W4A16_ASYM"),
    request("autogptq", "W4A16"),
    request("gptqmodel", "W4A16"),
    request("copy", "BF16"),
]


def planned(source: sources.Source, asked: Request) -> None:
    """All that `check` and `plan` work out from a model."""
    assert preflight.bad_patterns(asked, source) == []
    for gpus, target in ((1, "cpu"), (2, "hopper")):
        preflight.check(asked, source, target, gpus)
        preflight.advise(asked, source, target, gpus)
        preflight.cache(source, 2048, 2**30, gpus)
    targets.served(asked, source, 2)
    for engine in ENGINES.values():
        engine.check(asked, source)


@fuzz
@given(data=st.data())
def test_a_safetensors_file_is_read_or_refused(
    data: st.DataObject, files: dict[str | None, tuple[dict[str, Any], bytes]], tmp_path: Path
) -> None:
    header, body = files[data.draw(st.sampled_from(METHODS))]
    path = tmp_path / "a.safetensors"
    content = data.draw(st.one_of(near.safetensors(header, body), near.tensor_headers(header, body)))
    path.write_bytes(content)
    read = refused_or_read(lambda: headers.read_spans(path))
    assert read is not None
    spans, problems = read
    located(problems, path.name)
    # What was read lies in the file, and nowhere twice.
    places = sorted((start, size) for _, start, size in spans)
    assert all(start > 0 and start + size <= len(content) for start, size in places)
    assert all(one[0] + one[1] <= two[0] for one, two in itertools.pairwise(places))


@fuzz
@given(content=near.ggufs(), asked=st.sampled_from(REQUESTS))
def test_a_gguf_is_read_or_refused(tmp_path: Path, content: bytes, asked: Request) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    read = refused_or_read(lambda: gguf.read_gguf(path))
    assert read is not None
    located(read[2], path.name)
    found = refused_or_read(lambda: sources.find(str(path), path.parent, None))
    assert found is not None
    if found[0] is not None:
        planned(found[0], asked)


@fuzz
@given(data=st.data())
def test_a_folder_is_found_and_planned_with_or_refused(
    data: st.DataObject, files: dict[str | None, tuple[dict[str, Any], bytes]], tmp_path: Path
) -> None:
    asked = data.draw(st.sampled_from(REQUESTS))
    made = data.draw(near.folders(None, *files[None]))
    folder = near.written(tmp_path / "model", made)
    found = refused_or_read(lambda: sources.find(str(folder), folder.parent, None))
    assert found is not None
    source, problems = found
    located(problems, str(folder))
    assert (source is None) == bool(problems)
    if source is not None:
        refused_or_read(lambda: planned(source, asked))


@fuzz
@given(data=st.data())
def test_a_config_says_what_layers_there_are_or_is_refused(data: st.DataObject, tmp_path: Path) -> None:
    asked = data.draw(st.sampled_from(REQUESTS))
    path = tmp_path / "config.json"
    path.write_bytes(data.draw(near.documents(data.draw(st.sampled_from([near.CONFIG, near.MOE, packed.CONFIG])))))
    read = refused_or_read(lambda: model_config.read_file(path))
    assert read is not None
    config, problems = read
    located(problems, path.name)
    bare = sources.Source(uri="hf://a/b", kind="hub", resolved="hf://a/b", path=None, content=None)
    refused_or_read(lambda: planned(from_config.filled(bare, config), asked))


@fuzz
@given(data=st.data())
def test_a_checkup_has_findings_whatever_is_in_the_folder(
    data: st.DataObject, files: dict[str | None, tuple[dict[str, Any], bytes]], tmp_path: Path
) -> None:
    method = data.draw(st.sampled_from(METHODS))
    scratch = tmp_path
    folder = near.written(scratch / "model", data.draw(near.folders(method, *files[method])))
    against = near.written(scratch / "source", data.draw(near.folders(None, *files[None])))
    whole = data.draw(st.booleans())
    release = data.draw(st.sampled_from([None, Version("0.11"), Version("0.32")]))

    def examine(at: Path) -> checkup.Checkup:
        return checkup.examine(at, against=against, vllm=release, whole=whole)

    found = refused_or_read(lambda: examine(folder))
    assert found is not None
    for finding in found.findings:
        assert finding.message
        assert len(str(finding)) < 5000
        str(finding).encode()
    repaired = scratch / "repaired"
    try:
        repair.fix(found.checkpoint, found.findings, repaired, against, release)
    except OSError:
        assert not repaired.exists()
        return
    refused_or_read(lambda: examine(repaired))
    shutil.rmtree(repaired)
