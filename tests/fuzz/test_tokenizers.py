"""A tokenizer's files: they come with the model, and whatever they hold is a finding, an error or of no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.server import first_questions
from quantize.doctor import checkup
from quantize.engines import autoawq
from quantize.engines.protocol import Paths, Request
from registry.release import release_folder
from tests.fuzz.law import fuzz, refused_or_read
from tests.fuzz.mutations import damaged, documents
from tests.unit import packed

TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "LlamaTokenizerFast",
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "added_tokens_decoder": {"0": {"content": "<s>", "special": True}},
    "model_max_length": 2048,
    "eos_token": "</s>",
}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "<s>", "special": True}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]},
}
FILES: dict[str, st.SearchStrategy[bytes]] = {
    "tokenizer_config.json": documents(TOKENIZER_CONFIG),
    "tokenizer.json": documents(TOKENIZER),
    "generation_config.json": documents({"eos_token_id": [2, 3], "temperature": 0.6}),
    "special_tokens_map.json": documents({"eos_token": {"content": "</s>"}}),
    "chat_template.jinja": damaged(b"{{ messages }}"),
    "chat_template.json": documents({"chat_template": "{{ messages }}"}),
    "model.safetensors.index.json": documents({"weight_map": {"lm_head.weight": "model.safetensors"}}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = packed.checkpoint(tmp_path_factory.mktemp("tokenizer") / "model", "awq")
    # What is imported for the first look is no memory of an input.
    assert checkup.examine(folder).method == "awq"
    return folder


def restored(folder: Path) -> None:
    """Only what the checkpoint came with."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text("{}")


@fuzz
@given(data=st.data())
def test_a_tokenizer_is_looked_at_without_a_bug(data: st.DataObject, folder: Path) -> None:
    restored(folder)
    name = data.draw(st.sampled_from(sorted(FILES)))
    (folder / name).write_bytes(data.draw(FILES[name]))

    def look() -> checkup.Checkup:
        first_questions.has_chat_template(folder)
        release_folder.has_chat_template(folder)
        release_folder.missing_files(folder, folder)
        return checkup.examine(folder)

    refused_or_read(look)


@fuzz
@given(config=documents(TOKENIZER_CONFIG), template=st.none() | damaged(b"{{ messages }}"))
def test_a_tokenizer_is_translated_or_refused_by_its_name(config: bytes, template: bytes | None, folder: Path) -> None:
    restored(folder)
    (folder / "tokenizer_config.json").write_bytes(config)
    if template is not None:
        (folder / "chat_template.jinja").write_bytes(template)
    asked = Request("awq", "W4A16_ASYM", 32, ignore=(), damping=0.01, trust_remote_code=False)
    paths = Paths(folder, folder / "tokens.jsonl", folder)
    refused_or_read(lambda: autoawq.job(asked, paths), where="tokenizer_config.json")
