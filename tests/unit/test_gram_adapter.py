from __future__ import annotations

import dataclasses
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qpack import __version__
from qpack.core.console import Plain
from qpack.core.errors import QuantizeError
from qpack.core.problems import Location
from qpack.core.records import Quantized
from qpack.core.store import Store
from qpack.pipeline.context import Context
from qpack.pipeline.stages import quantize
from qpack.pipeline.state import Build
from quantize.checkpoint import layer_names
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.source import Source
from quantize.engines import bit_budget, catalog, gram, memory
from quantize.engines.protocol import Choice as Asked
from quantize.engines.protocol import Paths, Request
from quantize.engines.workers.gram_job import Choice
from quantize.gram import allocate
from quantize.preflight import preflight
from tests.unit import evidence_samples


def source(kind: str | None, *names: str) -> Source:
    tensors = tuple(Tensor(f"{name}.weight", "BF16", (64, 64)) for name in names)
    config: dict[str, Any] = {"model_type": kind} if kind else {}
    return Source("m", "folder", "m", None, None, tensors, config)


PATHS = Paths(Path("checkpoint"), Path("tokens"), Path("scratch"))


def request(scheme: str = "W4A16", ignore: tuple[str, ...] = ("lm_head",), group_size: int | None = 64) -> Request:
    return Request("awq+gptq", scheme, group_size, ignore, 0.01, False)


def test_gram_is_named_as_another_that_makes_awq_and_gptq_together() -> None:
    engine, why = catalog.choose("auto", "awq+gptq", "W4A16")
    assert engine is catalog.ENGINES["llmcompressor"]
    assert "gram makes it too" in why
    assert catalog.choose("gram", "awq+gptq", "W4A16")[0] is gram


def test_auto_stays_with_llm_compressor_for_what_both_make() -> None:
    engine, _ = catalog.choose("auto", "gptq", "W4A16")
    assert engine is catalog.ENGINES["llmcompressor"]


def test_gram_is_not_asked_for_what_it_does_not_make() -> None:
    engine, why = catalog.choose("gram", "rtn", "FP8")
    assert engine is None
    assert why == "gram doesn't make rtn FP8; it is made by llmcompressor, modelopt"


def test_every_decoder_is_taken_with_scales_whatever_it_is_called() -> None:
    for kind in ("llama", "olmo2", "of-tomorrow"):
        assert gram.check(request(), source(kind, "model.layers.0.mlp.up_proj")) == []
    assert gram.check(request(), source("gemma3", "language_model.model.layers.0.mlp.up_proj")) == []


def fused(kind: str, *names: str) -> Source:
    made = source(kind, "model.layers.0.self_attn.q_proj")
    more = tuple(Tensor(f"model.layers.0.mlp.experts.{name}", "BF16", (4, 64, 64)) for name in names)
    return dataclasses.replace(made, tensors=(*made.tensors, *more))


@pytest.mark.parametrize("name", ["gram", "llmcompressor"])
def test_experts_in_one_tensor_are_taken_apart_and_their_biases_are_not(name: str) -> None:
    engine = catalog.ENGINES[name]
    assert engine.check(request(), source("mixtral", "model.layers.0.block_sparse_moe.experts.3.w1")) == []
    assert engine.check(request(), fused("qwen3_vl_moe", "gate_up_proj", "down_proj")) == []
    (complaint,) = engine.check(request(), fused("gpt_oss", "gate_up_proj", "gate_up_proj_bias"))
    assert (complaint.code.name, complaint.where.key) == ("fused-biases", ("quantize", "method"))
    # Experts that stay as they are keep their biases.
    alone = request(ignore=("lm_head", "re:.*experts.*"))
    assert engine.check(alone, fused("gpt_oss", "gate_up_proj", "gate_up_proj_bias")) == []
    # What a router adds to its choices may stand among the experts (Laguna), and is no bias of theirs.
    among = Tensor("model.layers.0.mlp.experts.e_score_correction_bias", "F32", (4,))
    chooses = fused("laguna", "gate_up_proj", "down_proj")
    assert engine.check(request(), dataclasses.replace(chooses, tensors=(*chooses.tensors, among))) == []


def test_experts_that_are_stored_transposed_are_left_to_another_engine() -> None:
    made = fused("llama4_text", "gate_up_proj", "down_proj")
    for hidden, codes in ((64, []), (32, ["unknown-model"])):
        model = dataclasses.replace(made, config={**made.config, "hidden_size": hidden})
        assert [problem.code.name for problem in gram.check(request(), model)] == codes


@pytest.mark.parametrize("name", ["gram", "llmcompressor"])
def test_what_has_an_encoder_is_not_calibrated(name: str) -> None:
    made = source("t5", "decoder.layers.0.fc1")
    made = dataclasses.replace(made, config={**made.config, "is_encoder_decoder": True})
    (complaint,) = catalog.ENGINES[name].check(request(), made)
    assert complaint.code.name == "unknown-model"


def test_a_layer_outside_the_decoder_has_to_be_ignored() -> None:
    model = source("llama", "model.layers.0.mlp.up_proj", "lm_head")
    assert not gram.check(request(), model)
    (complaint,) = gram.check(request(ignore=()), model)
    assert complaint.code.name == "outside-decoder"
    assert complaint.where == Location(key=("quantize", "ignore"), name="lm_head")


def test_a_model_whose_headers_are_not_known_yet_is_left_to_the_worker() -> None:
    assert not gram.check(request(), source(None))


@pytest.mark.parametrize(
    ("scheme", "group_size", "grid"),
    [
        ("W4A16_ASYM", 64, (4, False, 64, False, False, "")),
        ("W8A16", None, (8, True, None, False, False, "")),
        ("W8A16_ASYM", 128, (8, False, 128, False, False, "")),
        ("W8A8", None, (8, True, None, False, True, "")),
        ("FP8_DYNAMIC", None, (8, True, None, True, True, "")),
        ("W4AFP8", 128, (4, True, 128, False, True, "")),
        ("NVFP4", None, (4, True, 16, False, True, "nv")),
        ("MXFP4", None, (4, True, 32, False, True, "mx")),
        ("NVFP4A16", None, (4, True, 16, False, False, "nv")),
        ("MXFP4A16", None, (4, True, 32, False, False, "mx")),
    ],
)
def test_the_job_says_the_scheme_as_a_grid(scheme: str, group_size: int | None, grid: tuple[Any, ...]) -> None:
    job = gram.job(request(scheme, group_size=group_size), PATHS)
    assert dataclasses.astuple(job.grid) == grid
    assert (job.format, job.mixed) == ("compressed-tensors", None)


def test_a_format_is_made_by_the_engines_that_write_it() -> None:
    assert catalog.choose("auto", "awq", "W4A16_ASYM", form="awq")[0] is gram
    assert catalog.choose("auto", "gptq", "W8A16", form="gptq")[0] is gram
    engine, why = catalog.choose("llmcompressor", "awq", "W4A16_ASYM", form="awq")
    assert engine is None
    assert why == "llmcompressor doesn't make awq W4A16_ASYM in the format awq; it is made by gram, autoawq"


def test_a_budget_is_kept_by_gram_alone() -> None:
    assert catalog.choose("auto", "gptq", "W4A16", mixed=True)[0] is gram
    engine, why = catalog.choose("gptqmodel", "gptq", "W4A16", mixed=True)
    assert engine is None
    assert why == "gptqmodel doesn't make gptq W4A16 within a budget; it is made by gram"


def test_awq_and_gptq_need_whole_words_and_awq_groups() -> None:
    model = Source("m", "folder", "m", None, None, (Tensor("a.layers.0.x.weight", "BF16", (60, 64)),), {})
    asked = dataclasses.replace(request("W4A16_ASYM"), format="awq")
    (complaint,) = gram.check(asked, model)
    assert (complaint.code.name, complaint.where.name) == ("partial-word", "a.layers.0.x.weight")
    assert "60 x 64" in complaint.message
    assert not gram.check(dataclasses.replace(asked, format="compressed-tensors"), model)
    assert not gram.check(dataclasses.replace(request("W8A16"), format="gptq"), model)
    (complaint,) = gram.check(dataclasses.replace(asked, group_size=None), model)
    assert complaint.code.name == "no-group-size"


def test_a_budget_chooses_among_groups_and_8_bits_where_they_can_be_served() -> None:
    asked = dataclasses.replace(request("W4A16_ASYM", group_size=None), budget=4.5)
    cpu = bit_budget.options(asked)
    assert [(o.scheme, o.group_size) for o in cpu] == [("W4A16_ASYM", 128), ("W4A16_ASYM", 64), ("W4A16_ASYM", 32)]
    hopper = bit_budget.options(dataclasses.replace(asked, target="hopper", group_size=16))
    assert {o.scheme for o in hopper} == {"W4A16_ASYM", "W8A16"}
    assert {o.group_size for o in hopper} == {16, 32, 64, 128}
    mixed = gram.job(dataclasses.replace(asked, tensor_parallel=2), PATHS).mixed
    assert mixed is not None
    assert (mixed.budget, mixed.shards) == (4.5, 2)
    assert mixed.grids[0] is not None
    assert (mixed.grids[0].bits, mixed.grids[0].symmetric, mixed.grids[0].group_size) == (4, False, 128)
    assert mixed.choices == (Choice("re:.*", (0, 1, 2)),)


MIXTURE = (Asked("re:.*experts.*", ("NVFP4A16",), None), Asked("re:.*", ("FP8_DYNAMIC", "BF16"), None))


def test_a_budget_chooses_among_schemes_by_pattern() -> None:
    asked = dataclasses.replace(request("NVFP4A16", group_size=None), budget=6.0, choices=MIXTURE, target="hopper")
    mixed = gram.job(asked, PATHS).mixed
    assert mixed is not None
    assert [(one and (one.bits, one.fp4, one.float8, one.activations, one.group_size)) for one in mixed.grids] == [
        (4, "nv", False, False, 16), (8, "", True, True, None), None
    ]  # fmt: skip
    assert [(one.layers, one.grids) for one in mixed.choices] == [
        ("re:.*experts.*", (0,)), ("re:.*", (1, 2)), ("re:.*", (0,))
    ]  # fmt: skip
    unknown = dataclasses.replace(asked, choices=(Asked("re:.*", ("W4A8", "BF16"), None),))
    found = gram.check(unknown, source("llama", "model.layers.0.mlp.up_proj"))
    assert ("engine-scheme", ("quantize", "choices", 0, "schemes")) in [(p.code.name, p.where.key) for p in found]


def test_a_budget_per_token_counts_an_expert_as_often_as_it_is_chosen() -> None:
    """Experts in 4.5 bits, and 4096 weights of attention in 8.25: of 8 experts 2 answer a token."""
    config = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    layers = [Tensor(f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight", "BF16", (64, 64)) for i in range(8)]
    layers.append(Tensor("model.layers.0.self_attn.o_proj.weight", "BF16", (64, 64)))
    asked = dataclasses.replace(request("NVFP4A16", group_size=None), choices=MIXTURE, target="hopper")
    of_weights, of_tokens = (8 * 4.5 + 8.25) / 9, (2 * 4.5 + 8.25) / 3
    for per_token, least in ((False, of_weights), (True, of_tokens)):
        enough = dataclasses.replace(asked, budget=least + 1e-6, per_token=per_token)
        assert bit_budget.check(enough, layers, config) == []
        (problem,) = bit_budget.check(dataclasses.replace(enough, budget=least - 1e-3), layers, config)
        assert problem.code.name == "budget-too-low"
        assert f"{least:.4f}" in problem.message


def test_layers_that_servers_join_have_one_choice() -> None:
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    model = dataclasses.replace(
        source("llama", names[0]), tensors=tuple(Tensor(f"{name}.weight", "BF16", (64, 64)) for name in names)
    )
    apart = (Asked("re:.*q_proj", ("W8A16",), None), Asked("re:.*", ("W4A16", "W8A16"), 32))
    asked = dataclasses.replace(request("W4A16", group_size=32), budget=6.0, choices=apart, target="hopper")
    found = preflight.check(asked, model, "hopper", 1)
    assert [(p.code.name, p.where.key) for p in found] == [("joined-unequal", ("quantize", "choices"))]
    assert preflight.check(dataclasses.replace(asked, choices=apart[1:]), model, "hopper", 1) == []


def test_every_scheme_of_a_choice_needs_a_kernel_and_groups_that_divide() -> None:
    model = source("llama", "model.layers.0.mlp.up_proj")
    asked = dataclasses.replace(request("W4A16", group_size=32), budget=9.0)
    for choice, target in ((("W4A16", "NVFP4A16"), "cpu"), (("W8A8", "W4A16"), "blackwell")):
        mixed = dataclasses.replace(asked, choices=(Asked("re:.*", choice, 32),), target=target)
        (problem, *_) = preflight.check(mixed, model, target, 1)
        assert (problem.code.name, problem.where.key) == ("no-kernel", ("quantize", "choices", 0, "schemes"))
    coarse = dataclasses.replace(asked, choices=(Asked("re:.*", ("W4A16", "W8A8"), 48),))
    assert {p.where.key for p in preflight.check(coarse, model, "cpu", 1)} == {("quantize", "choices", 0, "schemes")}


def test_a_budget_that_can_not_be_kept_is_told_with_the_least_that_can() -> None:
    model = source("llama", "model.layers.0.mlp.up_proj")
    asked = dataclasses.replace(request("W4A16", group_size=None), budget=4.25)
    assert not gram.check(asked, model)
    (complaint,) = gram.check(dataclasses.replace(asked, budget=4.2), model)
    # 64 channels: groups of 128 don't divide them.
    assert (complaint.code.name, complaint.where.key) == ("budget-too-low", ("quantize", "budget"))
    assert "4.2500" in complaint.message
    (complaint,) = gram.check(dataclasses.replace(asked, tensor_parallel=4), model)
    assert (complaint.code.name, complaint.where.name) == ("group-size", "model.layers.0.mlp.up_proj.weight")
    assert "groups of 32, 64, 128 don't divide 64 input channels" in complaint.message


def test_layers_that_servers_join_are_one_part_of_a_budget() -> None:
    def part(linear: str) -> str:
        return allocate.part_of("model.layers.3", linear)

    assert allocate.JOINED == layer_names.FUSED
    assert part("self_attn.k_proj") == part("self_attn.q_proj") == part("self_attn.v_proj")
    assert part("mlp.up_proj") == part("mlp.gate_proj")
    assert part("mlp.experts.0.down_proj") == part("mlp.experts.7.gate_proj")
    assert part("mlp.shared_expert.up_proj") != part("mlp.experts.7.gate_proj")
    assert len({part(name) for name in ("self_attn.o_proj", "mlp.down_proj", "self_attn.q_proj", "mlp.up_proj")}) == 4


def test_a_build_warns_of_experts_that_saw_few_tokens_also_when_the_artifact_is_from_the_store(tmp_path: Path) -> None:
    site = evidence_samples.sites(1)[3].model_copy(update={"site": "expert_0_down", "routed_tokens": 7})
    made = evidence_samples.quantized().model_copy(update={"sites": (site,)})
    said = StringIO()
    step = SimpleNamespace(inputs={"stage": "quantize"})
    plan: Any = SimpleNamespace(engine=None, request=None, key=lambda stage: stage, steps={"quantize": step})
    build = Build(plan, Context(Store(tmp_path), tmp_path, Plain(said, groups=False, verbose=False)))
    build.store.once("quantize", "quantize", Quantized, lambda _: made, inputs={})
    build.store.remember(f"doctor-{made.digest[-32:]}", {"qpack": __version__})  # Found sound before.
    assert quantize.run(build).require(quantize.QUANTIZED).reused
    assert said.getvalue().strip().startswith("warning: 1 of 1 experts")
    assert "(model.layers.0 expert_0: 7)" in said.getvalue()


def test_iterations_are_gram_s_alone_and_auto_finds_it() -> None:
    assert catalog.choose("auto", "gptq", "W4A16", tuned=True)[0] is gram
    engine, why = catalog.choose("llmcompressor", "gptq", "W4A16", tuned=True)
    assert engine is None
    assert why == "llmcompressor doesn't make gptq W4A16 with iterations of tuning; it is made by gram"


def test_autoround_s_method_is_not_one_of_gram_s() -> None:
    """It would be taken for plain rounding."""
    for scheme in ("W4A16", "W8A16", "NVFP4", "MXFP4"):
        engine, why = catalog.choose("gram", "autoround", scheme)
        assert engine is None
        assert "autoround" in why


def test_iterations_are_refused_where_there_is_nothing_to_tune_by() -> None:
    model = source("llama", "model.layers.0.mlp.up_proj")
    asked = dataclasses.replace(request(), iterations=64)
    assert gram.check(asked, model) == []
    for method, scheme in (("rtn", "W4A16"), ("smoothquant", "W8A8"), ("gptq", "FP8_DYNAMIC")):
        wrong = dataclasses.replace(asked, method=method, scheme=scheme, group_size=None)
        (complaint,) = gram.check(wrong, model)
        assert (complaint.code.name, complaint.where.key) == ("tuning", ("quantize", "iterations"))
        assert gram.check(dataclasses.replace(wrong, iterations=0), model) == []
    for scheme in ("NVFP4", "NVFP4A16", "MXFP4", "MXFP4A16", "W4AFP8"):
        assert gram.check(dataclasses.replace(asked, scheme=scheme), model) == []


def test_iterations_reach_the_job_and_the_key_and_none_leave_the_key_as_it_was() -> None:
    asked = dataclasses.replace(request(), iterations=64)
    paths = Paths(Path("checkpoint"), Path("tokens"), Path("scratch"))
    assert gram.job(asked, paths).iterations == 64
    assert asked.key("compressed-tensors") == {**request().key("compressed-tensors"), "iterations": 64}
    assert "iterations" not in request().key("compressed-tensors")


def test_tuning_takes_host_memory_of_one_block_and_a_third_of_the_states_more() -> None:
    model = source("llama", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
    before, after = (
        dict(memory.parts(gram, dataclasses.replace(request(), iterations=n), model, 1000, 4, 8)) for n in (0, 64)
    )
    assert after.pop("tuning of one block") == 37 * 64 * 64
    states = "states of 4 x 8 tokens"
    assert 2 * after.pop(states) == 3 * before.pop(states)
    assert after == before


@pytest.mark.parametrize(
    "report",
    [None, "", "[]", "{}", '{"sites": 3}', '{"sites": []}', '{"sites": [{"name": "a"}]}', '{"sites": [1]}'],
)
def test_a_report_that_is_not_what_gram_writes_is_an_error_of_quantization(tmp_path: Path, report: str | None) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    if report is not None:
        (checkpoint / "gram_report.json").write_text(report)
    with pytest.raises(QuantizeError) as raised:
        gram.read_report(checkpoint / "gram_report.json")
    assert "gram_report.json" in str(raised.value)


def test_permission_to_run_a_models_own_code_reaches_the_job() -> None:
    for allowed in (False, True):
        asked = dataclasses.replace(request(), trust_remote_code=allowed)
        assert gram.job(asked, PATHS).trust_remote_code is allowed
