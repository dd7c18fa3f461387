"""A config in the words of transformers 4 and of 5 means the same to both, as the real ones read it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qpack.runtime import environments
from qpack.runtime.environments import Spec
from quantize.checkpoint import config_compat
from quantize.checkpoint.reader_environment import TRANSFORMERS
from quantize.engines import autoawq
from quantize.engines.protocol import Paths, Request
from tests.unit.test_config_compat import LLAMA3_ROPE

pytestmark = [pytest.mark.engines, pytest.mark.slow("what transformers 4 and 5 make of the same config")]

SCRIPT = Path(__file__).parent / "meaning.py"
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 100000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "llama3": {**LLAMA3_ROPE, "rope_theta": 500000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1000000.0},
}


def said(spec: Spec, engine_home: Path, folders: list[Path]) -> dict[str, Any]:
    """What the transformers of an environment makes of each folder, by its name."""
    environment = environments.ensure(environments.resolve(spec, "cpu", engine_home), engine_home, print)
    done = subprocess.run(
        [environment.python, SCRIPT, *folders],
        env={**os.environ, **environment.variables, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {Path(folder).name: meaning for folder, meaning in found.items()}


def write(
    folder: Path, model: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any], template: str | None
) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(model / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def read(tiny_model: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """By major version: what it makes of each RoPE in the words of 5, of 4, of both, of 5 by way of 4; and of what
    AutoAWQ's adapter hands to its worker and writes into the artifact.
    """
    folder = tmp_path_factory.mktemp("translated")
    config = json.loads((tiny_model / "config.json").read_text())
    tokenizer = json.loads((tiny_model / "tokenizer_config.json").read_text())
    template = (tiny_model / "chat_template.jinja").read_text()
    old_tokenizer = config_compat.tokenizer_to_4(tokenizer, template)
    fours, fives = [], []
    for name, rope in ROPES.items():
        new = {**config, "rope_parameters": rope}
        old = config_compat.to_4(new)
        fives.append(write(folder / f"new-{name}", tiny_model, new, tokenizer, template))
        fours.append(write(folder / f"old-{name}", tiny_model, old, old_tokenizer, None))
        again = config_compat.tokenizer_to_5(old_tokenizer)
        fives.append(write(folder / f"again-{name}", tiny_model, config_compat.to_5(old), *again))
        fours.append(write(folder / f"both-{name}", tiny_model, config_compat.both(new), old_tokenizer, None))
        fives.append(fours[-1])
    # What happens without a translation.
    fours.append(
        write(folder / "misread", tiny_model, {**config, "rope_parameters": ROPES["default"]}, tokenizer, None)
    )
    job = autoawq.job(
        Request("awq", "W4A16_ASYM", 32, (), 0.01, False),
        Paths(folder / "new-llama3", folder / "tokens.jsonl", folder),
    )
    fours.append(write(folder / "autoawq", tiny_model, job.config, job.tokenizer_config, None))
    artifact = write(folder / "artifact", tiny_model, job.artifact_config, tokenizer, template)
    fours.append(artifact)
    fives.append(artifact)
    return {4: said(autoawq.ENVIRONMENT, engine_home, fours), 5: said(TRANSFORMERS, engine_home, fives)}


@pytest.mark.parametrize("rope", ROPES)
def test_rope_dtype_and_prompts_are_the_same_in_the_words_of_4_of_5_and_of_both(
    rope: str, read: dict[int, dict[str, Any]]
) -> None:
    source = read[5][f"new-{rope}"]
    assert source["transformers"].startswith("5.")
    others = [read[4][f"old-{rope}"], read[5][f"again-{rope}"], read[4][f"both-{rope}"], read[5][f"both-{rope}"]]
    assert [other["transformers"][0] for other in others] == ["4", "5", "4", "5"]
    for other in others:
        assert other["inverse_frequencies"] == pytest.approx(source["inverse_frequencies"], rel=1e-6)
        assert other["attention_scaling"] == pytest.approx(source["attention_scaling"])
        for key in ("dtype", "text", "tokens", "ends"):
            assert other[key] == source[key], key
    assert source["dtype"] == "bfloat16"
    assert "<|im_start|>user\nAnd 3 + 3?" in source["text"]


def test_untranslated_4_misreads_the_base_and_can_not_read_the_tokenizer(read: dict[int, dict[str, Any]]) -> None:
    """So the test above can fail."""
    source, misread = read[5]["new-default"], read[4]["misread"]
    assert misread["inverse_frequencies"] != pytest.approx(source["inverse_frequencies"], rel=1e-2)
    assert "TokenizersBackend" in misread["tokenizer"]


def test_what_autoawq_gets_and_what_its_artifact_says_mean_what_the_source_does(
    read: dict[int, dict[str, Any]],
) -> None:
    source = read[5]["new-llama3"]
    for other in (read[4]["autoawq"], read[4]["artifact"], read[5]["artifact"]):
        assert other["inverse_frequencies"] == pytest.approx(source["inverse_frequencies"], rel=1e-6)
        assert other["attention_scaling"] == pytest.approx(source["attention_scaling"])
    assert (read[4]["autoawq"]["text"], read[4]["autoawq"]["tokens"]) == (source["text"], source["tokens"])
    assert (read[5]["artifact"]["text"], read[5]["artifact"]["tokens"]) == (source["text"], source["tokens"])
    # It stores its scales in half precision, so that is what its artifact says, to both.
    assert {read[4]["artifact"]["dtype"], read[5]["artifact"]["dtype"]} == {"float16"}
