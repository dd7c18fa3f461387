"""What each linear layer is for, told from shapes and the config, on layouts as they are on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from quantize.checkpoint import layer_roles, model_facts
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.layer_groups import matcher
from quantize.checkpoint.layer_roles import Role
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Override, Request
from quantize.preflight import defaults, preflight

H = 64


def source(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Source:
    tensors = tuple(Tensor(name, "BF16", shape) for name, shape in shapes.items())
    return Source("m", "folder", "m", None, None, tensors, config)


def decoder(layers: int = 2, stem: str = "model.layers", **block: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    inside = {f"self_attn.{name}_proj.weight": (H, H) for name in "qkvo"}
    inside |= {name.replace("__", "."): shape for name, shape in block.items()}
    return {f"{stem}.{i}.{name}": shape for i in range(layers) for name, shape in inside.items()}


def role_of(model: Source) -> dict[str, Role]:
    return {name: each.role for each in model.roles for name in each.kind.names}


def request(model: Source, ignore: tuple[str, ...] = (), overrides: tuple[Override, ...] = ()) -> Request:
    asked = Request("rtn", "W8A8", None, ignore, 0.01, False, overrides=overrides)
    return defaults.with_kept(asked, model)


MIXTURE = {"num_hidden_layers": 2, "hidden_size": H, "vocab_size": 512, "num_experts": 8, "num_experts_per_tok": 2}


def mixture(router: str, rows: int = 8) -> Source:
    experts = {f"mlp__experts__{e}__{part}_proj__weight": (H, H) for e in range(8) for part in ("gate", "up", "down")}
    return source(
        decoder(**{router.replace(".", "__"): (rows, H)}, **experts)
        | {"model.embed_tokens.weight": (512, H), "lm_head.weight": (512, H)},
        MIXTURE,
    )


def test_a_router_is_known_by_its_place_and_shape_whatever_its_name() -> None:
    for name in ("mlp.gate", "mlp.router.layer", "mlp.wg", "mlp.chooser.deep"):
        found = role_of(mixture(f"{name}.weight"))
        assert found[f"model.layers.0.{name}"] is Role.ROUTER, name
        assert found["model.layers.0.mlp.experts.0.gate_proj"] is Role.EXPERT


def test_keys_with_as_many_rows_as_there_are_experts_are_no_router() -> None:
    """As of Qwen3-Next: 512 experts, and 2 key heads of 256."""
    shapes = {tensor.name: tensor.shape for tensor in mixture("mlp.gate.weight").tensors}
    shapes |= {name: (8, H) for name in shapes if "k_proj" in name}
    shapes |= {f"model.layers.{i}.mlp.shared_expert.up_proj.weight": (8, H) for i in range(2)}
    found = role_of(source(shapes, MIXTURE))
    assert found["model.layers.0.self_attn.k_proj"] is Role.LINEAR
    assert found["model.layers.0.mlp.shared_expert.up_proj"] is Role.LINEAR


def test_fused_experts_are_counted_one_by_one_in_both_layouts() -> None:
    """[experts, out, in] as transformers saves them, [experts, in, out] as gpt-oss and Llama 4 are stored."""
    for gate_up, down, transposed in (((8, 96, H), (8, H, 48), False), ((8, H, 96), (8, 48, H), True)):
        shapes = decoder(mlp__experts__gate_up_proj=gate_up, mlp__experts__down_proj=down, mlp__router__weight=(8, H))
        model = source(shapes, MIXTURE)
        experts = {each.kind.shape: len(each.kind.names) for each in model.roles if each.role is Role.EXPERT}
        assert experts == {(48, H): 32, (H, 48): 16} or experts == {(48, H): 16, (H, 48): 16}
        assert sum(1 for tensor in model.linears if ".experts." in tensor.name) == 2 * 8 * 3
        assert {fused.transposed for fused in layer_roles.fused_experts(model.tensors, model.config)} == {transposed}
        facts = model_facts.of(model)
        assert (facts.layers, facts.experts, facts.active_experts) == (2, 8, 2)
        assert facts.parameters - facts.active_parameters == 2 * 3 * 6 * 48 * H


def test_linear_attention_keeps_its_gates_and_mamba_1_all() -> None:
    delta = decoder(
        linear_attn__A_log=(4,), linear_attn__in_proj_a__weight=(4, H), linear_attn__in_proj_odd__weight=(8, H),
        linear_attn__in_proj_z__weight=(H, H), linear_attn__out_proj__weight=(H, H),
    )  # fmt: skip
    found = role_of(source(delta, {"num_hidden_layers": 2}))
    inside = {name.rpartition(".")[2]: role for name, role in found.items() if "linear_attn" in name}
    assert inside == {
        "in_proj_a": Role.GATE,
        "in_proj_odd": Role.GATE,
        "in_proj_z": Role.LINEAR,
        "out_proj": Role.LINEAR,
    }
    mamba = decoder(mixer__A_log=(128, 16), mixer__in_proj__weight=(256, H), mixer__x_proj__weight=(40, 128))
    found = role_of(source(mamba, {"num_hidden_layers": 2}))
    assert {role for name, role in found.items() if "mixer" in name} == {Role.MAMBA}


def test_everything_outside_of_the_text_part_of_a_model_that_sees_is_left() -> None:
    shapes = decoder(stem="model.language_model.layers") | {
        "model.odd_eye.blocks.0.attn.qkv.weight": (3 * H, H),
        "model.odd_bridge.fc.weight": (H, H),
        "lm_head.weight": (512, H),
    }
    model = source(shapes, {"text_config": {"num_hidden_layers": 2, "vocab_size": 512}, "vision_config": {"depth": 1}})
    found = role_of(model)
    assert found["model.odd_eye.blocks.0.attn.qkv"] is found["model.odd_bridge.fc"] is Role.ENCODER
    assert found["lm_head"] is Role.OUTPUT
    assert request(model).kept == (r"re:(.*\.)?odd_eye\..*", r"re:(.*\.)?odd_bridge\..*", "lm_head")


def test_layers_numbered_after_the_decoder_are_drafts() -> None:
    model = source(decoder(3), {"num_hidden_layers": 2, "num_nextn_predict_layers": 1})
    found = role_of(model)
    assert found["model.layers.2.self_attn.q_proj"] is Role.DRAFT
    assert found["model.layers.1.self_attn.q_proj"] is Role.LINEAR
    assert model_facts.of(model).draft_layers == 1
    assert request(model).kept == (r"re:(.*\.)?layers\.2\..*",)


@pytest.mark.parametrize(
    "part", ["mtp.layers.0", "mtp.0", "model.mtp.layers.0", "model.mtp_layers.0", "model.mtp_block.0"]
)
def test_layers_for_speculation_by_any_name_are_drafts(part: str) -> None:
    """DeepSeek V4, Qwen3-Next, LongCat, MiMo and ERNIE."""
    own = {f"{part}.self_attn.q_proj.weight": (H, H), "model.mtp_linear_proj.0.weight": (H, 2 * H)}
    model = source(decoder(2) | own, {"num_hidden_layers": 2, "num_nextn_predict_layers": 1})
    found = role_of(model)
    assert found[f"{part}.self_attn.q_proj"] is found["model.mtp_linear_proj.0"] is Role.DRAFT
    assert model_facts.of(model).draft_layers == 1


def test_what_vllm_names_otherwise_is_left_by_that_name_too() -> None:
    """MiMo's `model.mtp_layers.0` is `model.layers.N` in vLLM; Qwen's `mtp.layers.0` has its own name there."""
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    for part, more in (("model.mtp_layers.0", (r"re:(.*\.)?layers\.2\..*",)), ("mtp.layers.0", ())):
        model = source(decoder(2) | {f"{part}.self_attn.q_proj.weight": (H, H)}, config)
        asked = request(model)
        assert asked.kept[1:] == more
        assert {name for kind in model.split(asked.ignore)[0] for name in kind.names} == {
            tensor.name.removesuffix(".weight") for tensor in model.linears if "mtp" not in tensor.name
        }


def test_an_output_layer_of_any_name_is_left_and_an_override_takes_it() -> None:
    for name in ("lm_head", "language_model.lm_head", "embed_out", "strange_name"):
        model = source(decoder() | {f"{name}.weight": (512, H)}, {"num_hidden_layers": 2, "vocab_size": 512})
        assert role_of(model)[name] is Role.OUTPUT
        assert request(model).kept == (name.rpartition(".")[2],)
    assert request(model, overrides=(Override("strange_name", "W8A8", None),)).kept == ()


def test_fused_experts_of_any_name_are_told_by_their_shapes() -> None:
    """Aria: `fc1` leads to twice what `fc2` leads back from, both stored [experts, in, out]."""
    block = "model.layers.0.mlp.experts"
    tensors = [
        Tensor(f"{block}.fc1.weight", "BF16", (4, 256, 1024)),
        Tensor(f"{block}.fc2.weight", "BF16", (4, 512, 256)),
    ]
    found = layer_roles.fused_experts(tensors, {"hidden_size": 256, "moe_num_experts": 4})
    assert [(each.parts, each.transposed) for each in found] == [
        ((("gate_proj", (512, 256)), ("up_proj", (512, 256))), True),
        ((("down_proj", (256, 512)),), True),
    ]


def test_layers_stored_transposed_are_told_by_their_biases() -> None:
    block = {
        f"h.{i}.attn.c_attn.{part}": shape
        for i in range(2)
        for part, shape in (("weight", (H, 3 * H)), ("bias", (3 * H,)))
    }
    model = source(block, {"n_layer": 2, "model_type": "gpt2"})
    assert set(role_of(model).values()) == {Role.CONV1D}
    (complaint,) = preflight.check(request(model), model, "cpu", 1)
    assert complaint.code.name == "nothing-to-quantize"
    assert "Conv1D" in complaint.message


def test_patterns_of_what_is_left_match_exactly_that_and_add_to_the_recipes() -> None:
    for model in (mixture("mlp.gate.weight"), mixture("mlp.chooser.deep.weight")):
        asked = request(model, ("re:.*o_proj",))
        assert asked.own_ignore == ("re:.*o_proj",)
        left_alone = matcher(asked.kept)
        assert {name for name in role_of(model) if left_alone(name)} == {
            name for name, role in role_of(model).items() if not role.taken
        }
        reasons = {row.name: row.reason for row in defaults.table(asked, model) if not row.scheme}
        assert reasons["model.layers.*.self_attn.o_proj"] == "the recipe's `ignore`"
        assert reasons["lm_head"].startswith("output layer")


def test_a_few_layers_that_no_kernel_takes_are_left_with_those_that_are_joined_with_them() -> None:
    """But not the greater part of the weights: then the group size is wrong, and `check` says so."""
    big = {
        f"model.layers.0.mlp.experts.{e}.{part}_proj.weight": (256, 256) for e in range(8) for part in ("down", "up")
    }
    model = source(big | {f"model.layers.0.self_attn.{name}_proj.weight": (64, 96) for name in "qkv"}, {})
    asked = Request("rtn", "W4A16", 64, (), 0.01, False, target="hopper")
    found = defaults.with_kept(asked, model)
    assert found.kept == tuple(rf"re:(.*\.)?{name}_proj$" for name in "qkv")
    assert preflight.check(found, model, "hopper", 1) == []
    reasons = {row.name: row.reason for row in defaults.table(found, model) if not row.scheme}
    assert set(reasons.values()) == {Role.ODD.reason}
    left = [tensor for tensor in model.tensors if "experts.0." in tensor.name or "attn" in tensor.name]
    few = source({tensor.name: tensor.shape for tensor in left}, {})
    assert defaults.with_kept(asked, few).kept == ()
    assert [problem.code.name for problem in preflight.check(asked, few, "hopper", 1)] == ["group-size"]


def test_experts_that_vllm_reads_as_one_tensor_are_left_alone_with_that_reason() -> None:
    """Aria's `experts.fc1` and `experts.fc2`, [experts, in, out]."""
    shapes = decoder(mlp__experts__fc1__weight=(8, H, 96), mlp__experts__fc2__weight=(8, 48, H),
                     mlp__shared_experts__up_proj__weight=(96, H))  # fmt: skip
    model = source(shapes, {**MIXTURE, "model_type": "aria_text", "moe_num_experts": 8})
    experts = [each for each in model.roles if "mlp.experts" in each.kind.name]
    assert {each.role for each in experts} == {Role.WHOLE}
    asked = request(model)
    assert not any("mlp.experts" in kind.name for kind in model.split(asked.ignore)[0])
    assert any("shared_experts" in kind.name for kind in model.split(asked.ignore)[0])
    assert {row.scheme for row in defaults.table(asked, model) if "mlp.experts" in row.name} == {""}
