"""What headers and config say of a model of every architecture, against the model that transformers makes of it."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from evals.server.eval_environments import VLLM
from qpack.core.errors import QuantizeError
from qpack.pipeline.stages import fetch
from qpack.runtime import environments, worker
from quantize.checkpoint import model_facts, sources, tensors, truncate
from quantize.checkpoint.layer_roles import Role
from quantize.checkpoint.reader_environment import TRANSFORMERS
from quantize.checkpoint.source import Source
from quantize.checkpoint.workers import unpack_job
from quantize.doctor import checkup
from quantize.engines import llmcompressor
from quantize.schemes import vllm_models

COUNT = Path(__file__).parent / "count_in_transformers.py"
# True, and no fault of theirs: transformers leaves these layers out when it saves.
NO_DRAFTS = {"deepseek_v3", "glm4_moe"}


def found(folder: Path) -> Source:
    source, problems = sources.find(str(folder), folder, None)
    assert source is not None, problems
    return source


def counted(folders: list[Path], engine_home: Path) -> dict[str, Any]:
    environment = environments.ensure(environments.resolve(TRANSFORMERS, "cpu", engine_home), engine_home, print)
    variables = {**os.environ, **environment.variables, "HF_HUB_OFFLINE": "1"}
    command = [str(environment.python), str(COUNT), *map(str, folders)]
    printed = subprocess.run(command, env=variables, check=True, capture_output=True, text=True, timeout=600).stdout
    counts: dict[str, Any] = json.loads(printed)
    return counts


def test_parameters_layers_experts_and_matrices_are_those_of_transformers(
    architectures: list[Path], engine_home: Path
) -> None:
    """All parameters and those that answer a token; layers; experts, and how many answer; matrices to multiply with,
    those of experts one by one however they are stored.
    """
    truth = counted(architectures, engine_home)
    assert len(truth) >= 80
    for folder in architectures:
        source = found(folder)
        facts = {**dataclasses.asdict(model_facts.of(source)), "matrices": len(source.linears)}
        assert {key: facts[key] for key in truth[folder.name]} == truth[folder.name], folder.name


def test_the_doctor_accuses_none_of_them(architectures: list[Path]) -> None:
    for folder in architectures:
        problems = [(found.severity, found.code.name) for found in checkup.examine(folder).findings]
        assert problems == ([("note", "draft-layers")] if folder.name in NO_DRAFTS else []), folder.name


def test_what_is_quantized_by_default_has_no_router_gate_head_or_encoder(architectures: list[Path]) -> None:
    """By the names that these architectures have for them; the code goes by shapes first."""
    small = ("gate", "router", "in_proj_a", "in_proj_b", "in_proj_ba", "dt_proj", "x_proj", "weights_proj")
    whole = ("lm_head", "visual", "vision_tower", "vision_model", "multi_modal_projector", "embed_tokens_extend", "mtp")
    for folder in architectures:
        taken = [name for each in found(folder).roles if each.role.taken for name in each.kind.names]
        wrong = [n for n in taken if n.rpartition(".")[2] in small or any(part in n.split(".") for part in whole)]
        assert wrong == [], folder.name
        kinds = {each.role for each in found(folder).roles}
        assert Role.EXPERT in kinds or "moe" not in folder.name, folder.name


def test_a_truncated_model_is_one_that_transformers_loads(
    architectures: list[Path], engine_home: Path, tmp_path: Path
) -> None:
    """With fewer layers: the doctor finds nothing, and transformers counts what is there."""
    folders = []
    for folder in architectures:
        if found(folder).config.get("is_encoder_decoder"):
            with pytest.raises(truncate.CannotTruncate):
                truncate.truncate(folder, tmp_path / folder.name)
            continue
        truncate.truncate(folder, tmp_path / folder.name)
        assert [p for p in checkup.examine(tmp_path / folder.name).findings if p.severity != "note"] == [], folder.name
        folders.append(tmp_path / folder.name)
    for name, counts in counted(folders, engine_home).items():
        # Of a folder of files: what a truncated model leaves as it is, is links.
        whole = Path(shutil.copytree(tmp_path / name, tmp_path / f"{name}-files"))
        facts = dataclasses.asdict(model_facts.of(found(whole)))
        assert {key: counts[key] for key in ("parameters", "layers")} == {
            key: facts[key] for key in ("parameters", "layers")
        }, name


def test_what_vllm_does_not_serve_is_what_its_locked_release_says(engine_home: Path) -> None:
    environment = environments.ensure(environments.resolve(VLLM, "cpu", engine_home), engine_home, print)
    registry = "lib/python3*/site-packages/vllm/model_executor/models/registry.py"
    (path,) = Path(environment.python).parents[1].glob(registry)
    tables: dict[str, dict[str, Any]] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            pairs = zip(node.value.keys, node.value.values, strict=True)
            tables[name] = {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}
    dropped = {name: ast.literal_eval(value) for name, value in tables["_PREVIOUSLY_SUPPORTED_MODELS"].items()}
    assert dropped == vllm_models.DROPPED
    generate = {*tables["_TEXT_GENERATION_MODELS"], *tables["_MULTIMODAL_MODELS"], *dropped}
    assert [name for name in generate if vllm_models.pools(name) and not name.startswith("Ernie")] == []
    known = {name for table, pairs in tables.items() if "SUPPORTED_MODELS" not in table for name in pairs}
    known |= {*tables["_TRANSFORMERS_SUPPORTED_MODELS"], *tables["_TRANSFORMERS_BACKEND_MODELS"]}
    assert set(vllm_models.OTHER_NAMES.values()) < known
    assert not set(vllm_models.OTHER_NAMES) & known
    # Whether the Transformers backend takes a class: `_supports_attention_backend`, `_can_set_attn_implementation`.
    left = set()
    for module in (path.parents[3] / "transformers" / "models").glob("*/modeling_*.py"):
        code = module.read_text()
        takes = "_supports_attention_backend = True" in code or (
            "eager_attention_forward(" in code and "ALL_ATTENTION_FUNCTIONS.get_interface(" in code
        )
        classes = re.findall(r"^class (\w+(?:ForCausalLM|LMHeadModel|ForConditionalGeneration))\b", code, re.MULTILINE)
        left |= set() if takes else set(classes)
    assert left - known - {"AutoModelForCausalLM"} == vllm_models.NO_BACKEND
    # What a class reads of its config, where transformers' config of the same model has no such key.
    models = path.parent
    for architecture, keys in vllm_models.READ_KEYS.items():
        module = dict(tables["_TEXT_GENERATION_MODELS"])[architecture].elts[0].value
        code = (models / f"{module}.py").read_text()
        assert [key for key in keys if f"config.{key}" not in code] == []
    for name in vllm_models.NEED_TORCHVISION:
        assert name in tables["_TEXT_GENERATION_MODELS"]


def test_fp8_blocks_are_unpacked_to_what_they_stand_for(
    architectures: list[Path], engine_home: Path, tmp_path: Path
) -> None:
    """DeepSeek's format, within FP8's rounding (2 ** -4 of a value at most), and nothing else is changed."""
    (model,) = [folder for folder in architectures if folder.name == "deepseek_v2"]
    environment = environments.ensure(environments.resolve(TRANSFORMERS, "cpu", engine_home), engine_home, print)
    pack = [str(environment.python), str(COUNT.with_name("pack_fp8_blocks.py")), str(model), str(tmp_path / "packed")]
    subprocess.run(pack, env={**os.environ, **environment.variables}, check=True, capture_output=True, timeout=300)
    assert [str(problem) for problem in checkup.examine(tmp_path / "packed").findings] == []
    resolved = environments.resolve(llmcompressor.ENVIRONMENT, "cpu", engine_home)
    unpacks = environments.ensure(resolved, engine_home, print)
    call = worker.Call(unpacks, tmp_path, tmp_path / "log", 300, QuantizeError)
    answer = worker.run(fetch.UNPACK_WORKER, unpack_job.Job(str(tmp_path / "packed")), unpack_job.Answer, call)
    made = tmp_path / "checkpoint"
    compared = tensors.compare(
        {"a": model / "model.safetensors"}, {file.name: file for file in made.glob("*.safetensors")}
    )
    changed = {difference.name: difference.relative for difference in compared.differences}
    assert answer.unpacked == len(changed) > 10
    assert all(name.endswith(("_proj.weight", "_with_mqa.weight")) for name in changed)
    assert all(relative is not None and relative < 2**-4 for relative in changed.values())
    assert found(made).quantization is None
