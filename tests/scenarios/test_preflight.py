"""`qpack check` and `qpack plan` before anything runs: errors at their lines, notes, and what a build needs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.scenarios.command import DEMO, Qpack
from tests.unit.recipes import safetensors


def test_a_pattern_without_effect_is_a_note_at_its_line_and_no_error(qpack: Qpack, recipe: Path) -> None:
    path = qpack.cwd / recipe
    path.write_text(path.read_text().replace("  group_size: 32\n", "  group_size: 32\n  ignore: [lm_head, nosuch]\n"))
    line = path.read_text().splitlines().index("  ignore: [lm_head, nosuch]") + 1
    done = qpack("check", recipe)
    assert done.code == 0, done
    assert f"note[unmatched-pattern] {recipe}:{line}: quantize.ignore[1]: " in done.out
    found = json.loads(qpack("check", recipe, "--json").out)["advice"]
    (advice,) = (advice for advice in found if "nosuch" in advice["what"])
    assert advice["where"] == f"{recipe}:{line}"


def test_a_plan_says_what_is_needed_and_from_what_that_follows(qpack: Qpack, recipe: Path) -> None:
    needs = {need["what"]: need for need in json.loads(qpack("plan", recipe, "--json").out)["requirements"]}
    assert set(needs) == {"memory to quantize", "memory to serve the baseline", "memory to serve the artifact", "disk"}
    weights = 2 * (128 * 64 + 2 * 64 * 64 + 2 * 2 * 64 * 64 + 64)
    assert needs["memory to serve the baseline"]["bytes"] == weights + 2**30
    assert "KV cache 1,024 MiB" in needs["memory to serve the baseline"]["basis"]
    assert "Hessians of one block" in needs["memory to quantize"]["basis"]
    assert needs["disk"]["have"] > 0
    assert "memory to quantize: " in qpack("plan", recipe).out


def test_layers_that_servers_join_are_an_error_at_the_recipes_line(qpack: Qpack, recipe: Path) -> None:
    names = ("q_proj", "k_proj", "v_proj")
    safetensors(
        qpack.cwd / "model" / "model.safetensors", {f"model.layers.0.self_attn.{n}.weight": (64, 64) for n in names}
    )
    done = qpack("check", recipe, "--set", 'quantize.ignore=["re:.*k_proj"]')
    assert (done.code, done.out) == (2, "")
    assert "error[joined-unequal] --set quantize.ignore: model.layers.0.self_attn.k_proj: " in done.err


CONFIG = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2,
          "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 1000}  # fmt: skip


def test_without_a_hub_the_cached_config_is_checked(qpack: Qpack, recipe: Path) -> None:
    cached, commit = qpack.cwd / "hf" / "hub" / "models--nobody--nothing", "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "snapshots" / commit / "config.json").write_text(json.dumps(CONFIG))
    away = ("--set", "model.source=hf://nobody/nothing@main")
    done = qpack("check", recipe, *away, "--set", "quantize.group_size=128", HF_HUB_OFFLINE="1")
    assert done.code == 2, done
    assert "error[group-size] " in done.err
    done = qpack("check", recipe, *away, HF_HUB_OFFLINE="1")
    assert done.code == 0, done
    assert "not checked: layers: taken from the config, no file was read" in done.out


def test_without_a_hub_a_given_config_is_checked_and_what_was_left_is_said(qpack: Qpack, recipe: Path) -> None:
    (qpack.cwd / "given.json").write_text(json.dumps(CONFIG))
    away = ("--set", "model.source=hf://nobody/nothing", "--config", "given.json")
    done = qpack("check", recipe, *away, "--set", "quantize.group_size=128", HF_HUB_OFFLINE="1")
    assert done.code == 2, done
    assert "error[group-size] --set quantize.group_size: model.layers.0.self_attn.q_proj" in done.err
    done = qpack("check", recipe, *away, HF_HUB_OFFLINE="1")
    assert done.code == 0, done
    assert "not checked: layers: taken from the config, no file was read" in done.out
    (qpack.cwd / "given.json").write_text("[")
    done = qpack("check", recipe, *away, HF_HUB_OFFLINE="1")
    assert (done.code, done.out) == (2, "")
    assert "given.json" in done.err


def test_a_format_and_a_budget_are_planned_and_have_keys_of_their_own(qpack: Qpack, recipe: Path) -> None:
    def planned(*settings: str) -> tuple[str, str, str]:
        options = [part for setting in settings for part in ("--set", setting)]
        plan = json.loads(qpack("plan", recipe, "--json", *options).out)
        (key,) = (step["key"] for step in plan["steps"] if step["stage"] == "quantize")
        return plan["engine"], plan["format"], key

    plain = planned("quantize.engine=gram")
    assert plain[:2] == ("gram", "compressed-tensors")
    assert planned("quantize.engine=gram", "quantize.format=compressed-tensors") == plain
    gptq = planned("quantize.engine=gram", "quantize.format=gptq")
    assert gptq[:2] == ("gram", "gptq")
    assert planned("quantize.format=gptq")[:2] == ("gram", "gptq")
    mixed = planned("quantize.budget=4.6", "quantize.group_size=null")
    assert mixed[:2] == ("gram", "compressed-tensors")
    assert len({key for *_, key in (plain, gptq, mixed, planned("quantize.budget=5"))}) == 4
    said = qpack("plan", recipe, "--set", "quantize.budget=4.6").out
    assert "gptq W4A16 in groups of 32 within 4.6 bits a weight" in said
    refused = qpack("check", recipe, "--set", "quantize.budget=4.2")
    assert (refused.code, refused.out) == (2, "")
    assert "the cheapest choice needs 4.2" in refused.err


def test_gpus_that_cannot_share_the_heads_of_a_gguf_are_refused(qpack: Qpack) -> None:
    two = ("--set", "serve.target=hopper", "--set", "serve.tensor_parallel=2")
    done = qpack("check", DEMO, *two)
    assert (done.code, done.out) == (2, "")
    assert "error[tensor-parallel] --set serve.tensor_parallel: 2 GPUs can't share 9 attention heads." in done.err


def test_an_override_of_an_output_layer_that_is_tied_is_a_note(qpack: Qpack) -> None:
    done = qpack("check", DEMO, "--set", "quantize.overrides=[{layers: lm_head, scheme: W8A8}]")
    assert done.code == 0, done
    assert "note[unmatched-pattern] --set quantize.overrides[0].layers: 'lm_head'" in done.out
    assert "unmatched-pattern" not in qpack("check", DEMO).out
