"""A model in llm-compressor: loaded by its architecture, calibrated by its own forward, saved in its own layout."""

import contextlib
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import layer_passes
import qpack_worker
import source_layout
import torch
import transformers
from compressed_tensors import ModelCompressor
from compressed_tensors.offload import disable_offloading, set_onload_device
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.core import LifecycleCallbacks, active_session
from llmcompressor.modeling import offset_norm
from llmcompressor.modeling.moe.context import moe_calibration_context
from llmcompressor.modeling.moe.linearize import linearize_moe
from llmcompressor.modeling.moe.llama4 import Llama4LinearExperts
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.utils.hooks import HooksMixin
from llmcompressor.pipelines import CalibrationPipeline
from llmcompressor.pipelines.cache import IntermediatesCache
from llmcompressor.utils import helpers
from llmcompressor.utils.dev import get_main_device
from llmcompressor.utils.helpers import DisableQuantization, calibration_forward_context
from tokenizers import Tokenizer, models

OBSERVE = Path(__file__).resolve().parents[2] / "gram" / "observe.py"
OBSERVED_TOKENS = 48
_installed = []


def observing():
    """The module `observe` of gram, by its place: it imports torch alone."""
    spec = importlib.util.spec_from_file_location("observe", OBSERVE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["observe"] = module
    spec.loader.exec_module(module)
    return module


class Progress:
    """Reports how many layers are done, over all passes."""

    def __init__(self, total):
        self.done, self.total = 0, total

    def layer(self):
        self.done += 1
        qpack_worker.progress(min(self.done, self.total), self.total, "layers")


class UnpinnedCache:
    """AWQ pins its cache in host memory for the copy to a GPU; without one, pinning is an error in torch."""

    @staticmethod
    def install():
        if not torch.accelerator.is_available():
            IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None  # noqa: ARG005


class Llama4Text:
    """llm-compressor takes Llama 4's experts apart by the config of the model that sees; there are some that don't."""

    @staticmethod
    def install():
        made = Llama4LinearExperts.from_experts_module.__func__

        def from_experts(cls, experts, config):
            return made(
                cls, experts, config if hasattr(config, "text_config") else types.SimpleNamespace(text_config=config)
            )

        Llama4LinearExperts.from_experts_module = classmethod(from_experts)


class OwnAttention:
    """llm-compressor calibrates with plain attention, for its tracer. Masks are made for the model's own one."""

    @staticmethod
    def install():
        helpers.use_eager_attention = lambda model: contextlib.nullcontext()  # noqa: ARG005


class WholeNorms:
    """Norms that multiply by 1 + weight become norms that multiply by weight while scales are searched. In 16 bits
    1 + weight isn't what it was when 1 is subtracted again, so it is kept in 32.
    """

    @staticmethod
    def install():
        begin = offset_norm.CalibrationOffsetNorm.__init__

        def begin_in_32_bits(self, original, config):
            begin(self, original, config)
            self.weight = torch.nn.Parameter(1.0 + original.weight.data.float(), requires_grad=False)

        offset_norm.CalibrationOffsetNorm.__init__ = begin_in_32_bits


def load(job):
    """The model by the class that its config names: a model that also sees keeps the part that does."""
    config = transformers.AutoConfig.from_pretrained(
        job.checkpoint, local_files_only=True, trust_remote_code=job.trust_remote_code
    )
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    own = [] if "auto_map" in config.to_dict() else [one for one in named if hasattr(one, "from_pretrained")]
    return (own or [transformers.AutoModelForCausalLM])[0].from_pretrained(
        job.checkpoint, dtype="auto", local_files_only=True, trust_remote_code=job.trust_remote_code
    )


def rows_of(path):
    """Rows of token ids, without padding: each batch is one row."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["input_ids"] for line in file]


def inputs_of(ids, device):
    """A row as the model's forward takes it."""
    row = torch.tensor([ids], device=device)
    return {"input_ids": row, "attention_mask": torch.ones_like(row), "use_cache": False}


def matches(pattern, name):
    """Whether a recipe's pattern is about a layer: its name, the end of one, or `re:` and an expression."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return name == pattern or name.endswith("." + pattern)


class Layers:
    """The model's linear layers under the names of the source; `wanted` are those to quantize, by the model's names."""

    def __init__(self, model, source, ignore):
        self.model, self.source = model, source
        tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        self.tied = {name for name, module in linears.items() if id(module.weight) in tables}
        found, lost = source_layout.places(
            source, {f"{name}.weight": module.weight for name, module in linears.items() if name not in self.tied}
        )
        self.places = {name.removesuffix(".weight"): place for name, place in found.items()}
        self.names = {name: source_layout.module_name(place, name) for name, place in self.places.items()}
        self.lost = [name.removesuffix(".weight") for name in lost]
        left = [name for name in linears if any(matches(one, self.names.get(name, name)) for one in ignore)]
        self.left = {*left, *self.tied}
        self.wanted = {name: module for name, module in linears.items() if name not in self.left}
        if nowhere := [name for name in self.lost if name in self.wanted]:
            raise source_layout.NoPlace(
                f"{nowhere[0]}: no tensor of the source holds its values ({len(nowhere)} such layers)"
            )
        for name in self.lost:
            self.wanted.pop(name, None)
            self.left.add(name)

    def plain(self, name):
        """The source's name of a layer."""
        return self.names.get(name, name)


class Calibration(CalibrationPipeline):
    """llm-compressor's calibration with the model's own passes in the place of its traced ones.

    `layers` are the decoder layers by name, `reached` the modules that a token came to.
    """

    layers, rows, progress, reached = {}, [], None, set()

    @staticmethod
    def install(layers, rows, progress):
        """For the runs that follow, whatever the modifiers are."""
        Calibration.layers, Calibration.rows, Calibration.progress = layers, rows, progress
        Calibration.reached = set()
        CalibrationPipeline._infer_pipeline = staticmethod(lambda modifiers: "own_passes")  # noqa: ARG005

    @staticmethod
    def __call__(model, dataloader, dataset_args):  # noqa: ARG004
        device = get_main_device()
        set_onload_device(model, device)
        state = active_session().state
        state.loss_masks, state.sequential_prefetch = None, False
        LifecycleCallbacks.calibration_start()
        inputs = [inputs_of(ids, device) for ids in Calibration.rows]
        with contextlib.ExitStack() as stack:
            stack.enter_context(calibration_forward_context(model))
            stack.enter_context(DisableQuantization(model))
            passes = stack.enter_context(layer_passes.Passes(model, Calibration.layers, inputs))
            watching = stack.enter_context(_watched(model))
            done = set()
            # What lies before the first layer and behind the last one is calibrated as it is passed.
            layer = passes.advance()
            while layer is not None:
                if layer not in done:
                    with disable_offloading():
                        for number in passes.run(layer, keep=False):
                            state.current_batch_idx = number
                        LifecycleCallbacks.sequential_epoch_end(list(layer.modules()))
                        done.add(layer)
                    Calibration.progress.layer()
                with disable_offloading(), HooksMixin.disable_hooks():
                    for _ in passes.run(layer, keep=True):
                        pass
                last = len(done) == len(Calibration.layers)
                with contextlib.nullcontext() if last else HooksMixin.disable_hooks():
                    layer = passes.advance()
            inside = {module for each in done for module in each.modules()}
            LifecycleCallbacks.sequential_epoch_end([module for module in model.modules() if module not in inside])
            LifecycleCallbacks.calibration_end()
            Calibration.reached |= watching
        Calibration.progress.layer()


@contextlib.contextmanager
def _watched(model):
    """The quantized modules that are called meanwhile, for as long as some may not have been."""
    reached, handles = set(), {}

    def hook(module, args):
        if args and isinstance(args[0], torch.Tensor) and args[0].numel():
            reached.add(module)
            handles.pop(module).remove()

    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            handles[module] = module.register_forward_pre_hook(hook)
    try:
        yield reached
    finally:
        for handle in handles.values():
            handle.remove()


CalibrationPipeline.register_value(value=Calibration, name="own_passes")


def shared_inputs(model, layers, wanted, row):
    """(layer's name, what gram.observe found) of every decoder layer, with one short row passing through the model."""
    observe, device = observing(), get_main_device()
    set_onload_device(model, device)
    found = []
    with (
        moe_calibration_context(),
        offset_norm.norm_calibration_context(model),
        calibration_forward_context(model),
        layer_passes.Passes(model, layers, [inputs_of(row[:OBSERVED_TOKENS], device)]) as passes,
    ):
        names = {layer: name for name, layer in layers.items()}
        layer = passes.advance()
        while layer is not None:
            name, arguments = names[layer], passes.arguments(0)
            fixed = [inside for inside in observe.matrices(layer) if f"{name}.{inside}" not in wanted]
            with disable_offloading(), passes.running(layer):

                def run(layer=layer, arguments=arguments):
                    args, kwargs = layer_passes.copied(arguments)
                    return layer(*args, **kwargs)

                found.append((name, observe.shared_inputs(layer, run, fixed)))
            for _ in passes.run(layer, keep=True):
                pass
            layer = passes.advance()
    return found


def awq_mappings(found, model):
    """What AWQ may scale, as llm-compressor takes it: (the module that absorbs, the modules that read)."""
    from llmcompressor.modifiers.transform.awq import AWQMapping

    mappings = []
    for layer, inputs in found:
        for one in inputs:
            if not one.absorber or one.offset:
                continue
            absorber = model.get_submodule(f"{layer}.{one.absorber}")
            # It divides the last rows, and the whole bias.
            if one.rows is not None and not (
                one.last_rows
                and (len(one.rows) == absorber.weight.shape[0] or absorber.bias is None)
                and one.rows[-1] + 1 == absorber.weight.shape[0]
            ):
                continue
            mappings.append(AWQMapping(f"{layer}.{one.absorber}", [f"{layer}.{name}" for name in one.readers]))
    return mappings


def smoothquant_mappings(found):
    """What SmoothQuant may scale: (the modules that read, the norm that absorbs)."""
    return [
        ([f"{layer}.{name}" for name in one.readers], f"{layer}.{one.absorber}")
        for layer, inputs in found
        for one in inputs
        if one.absorber and one.rows is None and not one.offset
    ]


class Quantizing:
    """One job on a loaded model. `modifiers_of(config_groups, ignore, mappings)` makes llm-compressor's modifiers."""

    def __init__(self, job):
        qpack_worker.progress(0, 0, "loading the model")
        for patch in () if _installed else (UnpinnedCache, OwnAttention, WholeNorms, Llama4Text):
            patch.install()
            _installed.append(patch)
        self.job = job
        self.model = load(job)
        linearize_moe(self.model)
        self.source = source_layout.Source(job.checkpoint)
        self.layers = Layers(self.model, self.source, job.ignore)
        self.decoder = layer_passes.decoder_layers(self.model, self.layers.wanted)
        self.norms = {}

    def observed(self, rows):
        """Inputs that modules share, and what absorbs their scales. Those norms are written anew."""
        qpack_worker.progress(0, 0, "finding what layers share")
        found = shared_inputs(self.model, self.decoder, self.layers.wanted, max(rows, key=len))
        norms = {
            f"{layer}.{one.absorber}.{name}": parameter
            for layer, inputs in found
            for one in inputs
            if one.absorber and one.rows is None
            for name, parameter in self.model.get_submodule(f"{layer}.{one.absorber}").named_parameters()
        }
        self.norms, lost = source_layout.places(self.source, norms)
        return [
            (layer, [one for one in inputs if not any(name.startswith(f"{layer}.{one.absorber}.") for name in lost)])
            for layer, inputs in found
        ]

    def run(self, modifiers, rows):
        """Calibrate and quantize; without rows, round."""
        apart = isinstance(modifiers[-1], GPTQModifier) and len(modifiers) > 1
        steps = (len(self.decoder) + 1) * (2 if apart else 1)
        Calibration.install(self.decoder, rows, Progress(steps))
        qpack_worker.progress(0, steps if rows else 0, "layers")
        data = {
            "dataset": Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
            "num_calibration_samples": len(rows),
            "shuffle_calibration_samples": False,
            "max_seq_length": max(map(len, rows)),
            # In one pass GPTQ would gather its Hessians from inputs that are scaled only after it has seen them.
            "pipeline": "independent" if apart else "own_passes",
        } if rows else {"pipeline": "datafree"}  # fmt: skip
        # Rows are token ids: nothing has to be tokenized, and no processor of pictures loaded.
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="<pad>")
        oneshot(model=self.model, tokenizer=tokenizer, recipe=modifiers, **data)

    def save(self, target, groups, unreached):
        """Write the artifact; how many layers were quantized. `groups` are (scheme, targets in the artifact), those
        that take precedence first. `unreached` layers stay as the source has them.
        """
        qpack_worker.progress(0, 0, "writing the checkpoint")
        layers, model = self.layers, self.model
        for name in unreached:
            module = model.get_submodule(name)
            for attribute in ("quantization_scheme", "quantization_status"):
                if hasattr(module, attribute):
                    delattr(module, attribute)
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model, skip_compressed=True)
        quantized = [
            name for name, module in layers.wanted.items() if getattr(module, "quantization_scheme", None) is not None
        ]
        instead, changed = {}, {}
        for name in quantized:
            place, called = layers.places[name], layers.names[name]
            parts = instead.setdefault(place.tensor, {})
            for part, tensor in _own_tensors(model.get_submodule(name)):
                if part == "bias":
                    changed[f"{called}.bias"] = tensor
                else:
                    parts[f"{called}.{part}"] = tensor
        for name, place in self.norms.items():
            changed[place.tensor] = model.get_parameter(name)
        changed |= self._cache_scales()
        if lost := [name for name in changed if name not in self.source.shapes and not name.endswith("_scale")]:
            raise source_layout.NoPlace(f"{lost[0]}: the source holds it under another name")
        source_layout.write(self.source, target, instead, changed)
        left = [*layers.left, *unreached]
        source_layout.write_config(
            self.source, target, self._config(compressor.quantization_config, groups, left, set(instead))
        )
        return len(quantized)

    def _cache_scales(self):
        """Scales of a quantized KV cache, which stand beside the layers that make keys and values."""
        found = {}
        for name, module in self.model.named_modules():
            scales = [(part, tensor) for part, tensor in _own_tensors(module) if part in ("k_scale", "v_scale")]
            if not scales:
                continue
            inside = [
                one for one in self.layers.names if one.startswith(name + ".") and "." not in one[len(name) + 1 :]
            ]
            stem = self.layers.names[inside[0]].rpartition(".")[0]
            found |= {f"{stem}.{part}": tensor for part, tensor in scales}
        return found

    def _config(self, written, groups, left, replaced):
        """What config.json says of the quantization, with the source's names."""
        dumped = json.loads(written.model_dump_json(exclude={"quant_method"}))
        given = list(dumped["config_groups"].values())
        ordered = []
        for scheme, targets in groups:
            asked = sorted(scheme.targets)
            ordered += [{**one, "targets": targets} for one in given if sorted(one["targets"]) == asked]
        embeddings = {id(module.weight) for module in self.model.modules() if isinstance(module, torch.nn.Embedding)}
        known = {name for name, parameter in self.model.named_parameters() if id(parameter) in embeddings}
        matrices = [
            name.removesuffix(".weight")
            for name, shape in self.source.shapes.items()
            if len(shape) == 2 and name.endswith(".weight") and name not in replaced and name not in known
        ]
        # transformers matches its own names, servers those of the checkpoint, or others that they give to parts of a
        # model (Gemma 3n's `self_decoder`): patterns of ends of names hold there too.
        patterns = [pattern for pattern in self.job.ignore if pattern.startswith("re:")]
        ignore = dict.fromkeys([*patterns, *matrices, *(self.layers.plain(name) for name in left), *left])
        return {
            "quant_method": "compressed-tensors",
            **dumped,
            "config_groups": {f"group_{number}": one for number, one in enumerate(ordered)},
            "ignore": sorted(ignore),
        }


def _own_tensors(module):
    """A module's own parameters and buffers, by name; on a GPU they are fetched."""
    for name in (*module._parameters, *module._buffers):
        tensor = getattr(module, name)
        if tensor is not None:
            yield name, tensor
