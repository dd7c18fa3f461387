"""What has to hold of every architecture that quantize.gram takes. Run as gram_claims.py is."""

import contextlib
import itertools
import json
import sys
from pathlib import Path

import torch
from gram_claims import CONFIGS, CPU, main, model_of, rows_of, run_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    StableLmConfig,
)  # fmt: skip

from quantize.gram import layer as solving
from quantize.gram.architectures import ARCHITECTURES, sites_of
from quantize.gram.checkpoint import Folder
from quantize.gram.clock import Clock
from quantize.gram.grid import Grid
from quantize.gram.job import Impossible, work
from quantize.gram.layer import Block, Settings, collect
from quantize.gram.names import Unsupported
from quantize.gram.skeleton import Skeleton

WINDOW = 12
OWN_CONFIG = """\
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config


class OwnConfig(Qwen2Config):
    model_type = "own_qwen2"
"""
OWN_MODEL = """\
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""
MORE = {
    "mistral": {"sliding_window": WINDOW},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 20, "layer_types": [
        "sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                  "shared_expert_intermediate_size": 64, "mlp_only_layers": [1]},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32},
}  # fmt: skip
CONFIGS |= {
    "gemma": GemmaConfig, "gemma2": Gemma2Config, "gemma3_text": Gemma3TextConfig, "phi3": Phi3Config,
    "mixtral": MixtralConfig, "qwen2_moe": Qwen2MoeConfig, "qwen3_moe": Qwen3MoeConfig, "stablelm": StableLmConfig,
}  # fmt: skip


def model(kind):
    made = model_of(kind, **MORE.get(kind, {}))
    for name, parameter in made.named_parameters():
        if name.endswith("gate.weight"):
            parameter.data = torch.randn_like(parameter)
    return made


def claim_a_model_with_code_of_its_own_is_quantized_with_permission_alone(folder):
    """As MiMo ships: a class of its own that transformers lacks, beside the weights."""
    source = folder / "own"
    model_of("qwen2").save_pretrained(source)
    (source / "configuration_own.py").write_text(OWN_CONFIG)
    (source / "modeling_own.py").write_text(OWN_MODEL)
    config = json.loads((source / "config.json").read_text())
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": "own_qwen2", "architectures": ["OwnForCausalLM"], "auto_map": own}
    (source / "config.json").write_text(json.dumps(config))
    (folder / "own-rows").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows_of(12)))
    order = {
        "checkpoint": str(source), "tokens": str(folder / "own-rows"), "method": "awq+gptq", "damping": 0.01,
        "grid": {"bits": 4, "symmetric": True, "group_size": 32}, "format": "compressed-tensors", "mixed": None,
        "ignore": ["lm_head", r"re:model\.layers\.3\..*"], "iterations": 0,
    }  # fmt: skip

    def made(name, **more):
        out = {"scratch": str(folder / f"own-{name}-scratch"), "out": str(folder / f"own-{name}")}
        return work({**order, **out, **more}, lambda *_: None)

    with contextlib.suppress(Impossible):
        made("refused")
        raise AssertionError("the checkpoint's code ran without permission")
    assert made("allowed", trust_remote_code=True)["quantized_layers"] == 21
    # A name that only a server has for a layer is left alone by that server.
    written = json.loads((folder / "own-allowed" / "checkpoint" / "config.json").read_text())
    assert written["quantization_config"]["ignore"] == order["ignore"]
    assert {"configuration_own.py", "modeling_own.py"} <= {
        path.name for path in (folder / "own-allowed" / "checkpoint").iterdir()
    }


def loaded(kind, folder):
    """The model in float32 as transformers has it, and streamed: (model, skeleton with the weights of every layer)."""
    model(kind).float().save_pretrained(folder / f"float-{kind}")
    # Loaded, because a model that was in 16 bits has its rotary frequencies in 16 bits.
    whole = AutoModelForCausalLM.from_pretrained(folder / f"float-{kind}", dtype=torch.float32).eval()
    source = Folder(folder / f"float-{kind}")
    skeleton = Skeleton(whole.config, CPU, source.names())
    skeleton.load(lambda names: source.read(names, "cpu"))
    for index, layer in enumerate(skeleton.layers):
        prefix = f"{skeleton.prefix}.{index}."
        names = [name for name in source.names() if skeleton.names.model[name].startswith(prefix)]
        layer.load_state_dict(skeleton.tensors(index, source.read(names, "cpu")), assign=True)
    return whole, skeleton


def each(claim, kinds):
    """Run a claim for every kind; what goes wrong names it."""
    for kind in kinds:
        try:
            claim(kind)
        except Exception as error:
            raise AssertionError(f"{kind}: {error!r}") from error


def claim_every_architecture_has_a_model_here(_):
    assert set(ARCHITECTURES) <= set(CONFIGS)


def claim_the_streamed_forward_is_transformers_own(folder):
    def same(kind):
        whole, skeleton = loaded(kind, folder)
        ids = torch.tensor(rows_of(2, 9)[0][:8] * 5 + [7]).repeat(2, 1)
        ids[1, 30:] = 0
        real = torch.ones_like(ids).bool()
        real[1, 30:] = False
        hidden = skeleton.begin(ids)
        with torch.no_grad():
            for index in range(len(skeleton.layers)):
                hidden = skeleton.forward(index, hidden, real)
            base = whole.get_submodule(skeleton.prefix.rpartition(".")[0])
            out = base.norm(hidden)
            for row, length in ((0, 41), (1, 30)):
                wanted = base(ids[row : row + 1, :length]).last_hidden_state[0]
                assert torch.allclose(out[row, :length], wanted, atol=1e-4, rtol=1e-4), (
                    (out[row, :length] - wanted).abs().max()
                )

    each(same, [*ARCHITECTURES, "stablelm"])


def observed(skeleton, ids, index=0):
    """The sites of a layer, as a run finds them."""
    skeleton.capture_inputs(ids[:, :40])
    return skeleton.sites(index, skeleton.begin(ids)[:, :40], lambda name: name.endswith("gate"))


def claim_what_is_observed_is_what_the_table_of_architectures_says(folder):
    def same(kind):
        _, skeleton = loaded(kind, folder)
        found = observed(skeleton, torch.tensor(rows_of(1, 60)[0]).unsqueeze(0))
        known = sites_of(kind, skeleton.linears(0))
        told = {(frozenset(site.readers), site.absorber, site.norm, site.offset) for site in found if not site.routed}
        wanted = {(frozenset(site.readers), site.absorber, site.norm, site.offset) for site in known if not site.routed}
        assert told == wanted, (told - wanted, wanted - told)
        experts = [site for site in found if site.routed]
        assert len(experts) == sum(site.routed for site in known)
        assert all((site.absorber == "") == site.name.endswith("gate_up") for site in experts), experts

    each(same, ARCHITECTURES)


def claim_folding_scales_leaves_the_function_as_it_was(folder):
    def unchanged(kind):
        _, skeleton = loaded(kind, folder)
        ids = torch.tensor(rows_of(1, 60)[0]).unsqueeze(0)
        hidden = skeleton.begin(ids)
        settings = Settings("awq+gptq", Grid(4, False, 16, torch.float32), 0.01, ())
        layer, sites, phase = skeleton.layers[0], observed(skeleton, ids), Clock(CPU).phase
        grams, handles = collect(layer, sites, lambda: None, phase)
        before = skeleton.forward(0, hidden, None)
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            block = Block(layer, "layer", sites, settings, phase)
            plans = [solving._plan(block, index, grams[site.name]) for index, site in enumerate(sites)]
            scaled = [plan for plan in plans if plan.choice is not None]
            for plan in scaled:
                scales = torch.randn(plan.gram.shape[0]).exp()
                if plan.owner is not None:
                    scales = torch.randn(int(plan.owner.max()) + 1).exp()[plan.owner]
                plan.scales = scales
                solving._fold(layer, plan, plan.scales, {})
        names = {plan.site.name for plan in scaled}
        assert {site.name for site in sites if site.absorber} == names, names
        after = skeleton.forward(0, hidden, None)
        change = (after - before).norm() / (before - hidden).norm()
        assert change < 1e-4, float(change)

    each(unchanged, ARCHITECTURES)


def claim_every_expert_is_quantized_and_told_how_many_tokens_it_got(folder):
    def all_of_them(kind):
        made = model(kind)
        made.save_pretrained(folder / kind)
        run = run_of(folder / kind, folder / f"{kind}-run", config=made.config)
        parts = run.run()
        names = {name for part in parts for name in Folder(part.parent).names()}
        source = Folder(folder / kind)
        matrices = [name for name, t in source.read(source.names(), "cpu").items() if t.dim() == 2]
        for name in (name for name in matrices if ".layers." in name):
            router = name.endswith("gate.weight")
            assert (f"{name}_packed" in names, name in names) == (not router, router), name
        routed = [r["routed_tokens"] for r in run.records if str(r["site"]).endswith("_down") and "routed_tokens" in r]
        tokens, sparse = sum(map(len, run.rows)), 2 if kind == "qwen2_moe" else 3
        assert (len(routed), sum(routed)) == (4 * sparse, 2 * tokens * sparse), routed

    each(all_of_them, [kind for kind, known in ARCHITECTURES.items() if known.experts])


def claim_an_expert_without_tokens_is_calibrated_on_others(folder):
    made = model("mixtral")
    made.model.layers[0].mlp.gate.weight.data.zero_()  # Ties go to the first experts.
    made.save_pretrained(folder / "unrouted")
    run = run_of(folder / "unrouted", folder / "unrouted-run", config=made.config)
    run.run()
    records = [record for record in run.records if record.get("routed_tokens") == 0]
    assert records
    assert all(record["error_after"] < record["error_before"] for record in records if record["site"].endswith("down"))


class _AnyOrder(TorchDispatchMode):
    """Collects what a GPU sums in any order: additions by index of which several meet at one place."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.rstrip("_")
        places = args[2] if name in ("index_add", "scatter_add", "scatter_reduce") else None
        if places is not None and args[0].is_floating_point() and len(places.unique()) < places.numel():
            self.found.add(name)
        if name == "cumsum" and args[0].is_floating_point():
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def claim_nothing_is_summed_in_an_order_that_a_gpu_may_choose(folder):
    folder = folder / "order"
    for kind, method in itertools.product(("llama", "gemma3_text", "mixtral"), ("awq", "gptq", "awq+gptq")):
        source = model(kind)
        source.save_pretrained(folder / kind)
        settings = Settings(method, Grid(4, False, 32), 0.01, ("lm_head",))
        run = run_of(folder / kind, folder / f"{kind} {method}", settings=settings, config=source.config)
        with _AnyOrder() as seen:
            run.run()
        assert seen.found == set(), (kind, method, seen.found)
        # Query heads that share a head of keys share its scale.
        scaled = [record["site"] for record in run.records if record["exponent"] is not None]
        assert method == "gptq" or "o" in scaled, (kind, scaled)


def claim_a_killed_run_of_experts_and_of_gemma_goes_on_to_the_same_bytes(folder):
    def resumed(kind):
        made = model(kind)
        made.save_pretrained(folder / f"{kind}-resumed")

        def kill(done, *_):
            if done == 2:
                raise InterruptedError

        whole = run_of(folder / f"{kind}-resumed", folder / f"{kind}-whole", config=made.config)
        wanted = [part.read_bytes() for part in whole.run()]
        with contextlib.suppress(InterruptedError):
            run_of(folder / f"{kind}-resumed", folder / f"{kind}-killed", kill, config=made.config).run()
        layers = []
        again = run_of(
            folder / f"{kind}-resumed", folder / f"{kind}-killed", lambda done, *_: layers.append(done),
            config=made.config,
        )  # fmt: skip
        assert [part.read_bytes() for part in again.run()] == wanted
        assert layers == [3], layers
        assert again.records == whole.records

    each(resumed, ["mixtral", "gemma3_text"])


def claim_a_decoder_that_no_table_has_is_taken_with_scales_too(folder):
    made = model("stablelm")
    made.save_pretrained(folder / "stablelm")
    settings = Settings("gptq", Grid(4, True, 32), 0.01, ("lm_head",))
    run = run_of(folder / "stablelm", folder / "stablelm-run", settings=settings, config=made.config)
    names = {name for part in run.run() for name in Folder(part.parent).names()}
    assert "model.layers.2.self_attn.o_proj.weight_packed" in names
    run = run_of(folder / "stablelm", folder / "stablelm-scaled", config=made.config)
    run.run()
    assert {record["site"] for record in run.records} == {"qkv", "o", "gate_up", "down"}
    assert all(record["error_after"] < record["error_before"] for record in run.records)
    assert any(record["exponent"] for record in run.records)


def refused(make):
    """What Unsupported says."""
    try:
        make()
    except Unsupported as error:
        return str(error)
    raise AssertionError("nothing was refused")


def claim_what_cannot_be_streamed_is_refused_by_name(_):
    small = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    for config, told in (
        (GPT2Config(n_layer=2, n_embd=32, n_head=2), "transformer.h.0"),
        (GptOssConfig(**small, num_key_value_heads=1, head_dim=16, intermediate_size=32, num_local_experts=2,
                      layer_types=["full_attention"] * 2), "model.layers.0.mlp.experts"),
    ):  # fmt: skip
        found = refused(lambda config=config: Skeleton(config, CPU))
        assert told in found, found


if __name__ == "__main__":
    main(Path(sys.argv[1]), globals())
