"""A model without weights, and the inputs that its own forward pass gives to each decoder layer.

transformers' model builds the inputs of its layers (scaled embeddings, masks with sliding windows, rotary embeddings
by layer). It is run here with layers that only capture their inputs: so every layer, streamed alone, gets exactly
what it would get in the whole model, whatever the architecture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from . import observe
from .allocate import joined_of
from .architectures import ROUTER, Site
from .experts import FUSED, Experts, split, unfuse
from .names import Unsupported, names_of
from .products import quick

_ROLES = ("gate", "up", "down")


class _Seen(Exception):
    """The last layer was reached."""


LayerInputs = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer's forward gets beside its hidden states."""


class Skeleton:
    """`layers` (on meta, below `prefix`), the `experts` of each by name, and `outside`: tensors before them.

    `names` are the checkpoint's, of a folder that has the tensors of `checkpoint`.
    """

    def __init__(self, config: PretrainedConfig, device: torch.device, checkpoint: Iterable[str] = ()) -> None:
        self.device = device
        self.kind = str(config.model_type)
        self.model = _built(config)
        self.model.eval()
        self.text = config.get_text_config()
        self.prefix = _prefix(self.model, self.text)
        self.base = self.model.get_submodule(self.prefix.rpartition(".")[0])
        self.layers: nn.ModuleList = self.model.get_submodule(self.prefix)
        self.names = names_of(self.model, checkpoint)
        self.experts: list[dict[str, Experts]] = [
            unfuse(layer, f"{self.prefix}.{index}", self.names.experts) for index, layer in enumerate(self.layers)
        ]
        self._split_names()
        for index, layer in enumerate(self.layers):
            if not any(isinstance(module, nn.Linear) for module in layer.modules()):
                what = f"{self.prefix}.{index} ({type(layer).__name__}) holds no linear layer that gram finds"
                raise Unsupported(what)
        self.outside = sorted(name for name in self.base.state_dict() if not name.startswith(self._below))
        self._layer_inputs: dict[tuple[int, int], list[LayerInputs]] = {}
        self._by_rows = False
        self._observed: dict[object, tuple[Site, ...]] = {}

    def _split_names(self) -> None:
        """Where the checkpoint fuses experts too, each of them gets the name that servers know it by."""
        for index, found in enumerate(self.experts):
            for name, experts in found.items():
                full = f"{self.prefix}.{index}.{name}"
                for own, parts in (*((own, experts.order[:-1]) for own in FUSED[:2]), (FUSED[2], experts.order[-1:])):
                    source = self.names.source.get(f"{full}.{own}")
                    if source is None:
                        continue
                    stem = source.removesuffix(".weight").rpartition(".")[0]
                    stem = stem if stem.endswith("experts") else f"{stem}.experts"
                    for number in range(len(experts.routed)):
                        for part in parts:
                            self.names.source[f"{full}.{number}.{part}.weight"] = f"{stem}.{number}.{part}.weight"

    @property
    def _below(self) -> str:
        return self.prefix.rpartition(".")[2] + "."

    def full(self, name: str) -> str:
        """The checkpoint's name of a tensor that `outside` lists."""
        own = f"{self.prefix.rpartition('.')[0]}.{name}".lstrip(".")
        return self.names.source.get(own, own)

    def linears(self, index: int) -> list[str]:
        """Names below a layer of everything that multiplies by a matrix, routers too."""
        return list(observe.matrices(self.layers[index]))

    def alone(self, index: int, ignores: Callable[[str], bool], *, joined: bool) -> tuple[Site, ...]:
        """A site for each linear layer that isn't left alone: what is rounded without data needs to know no more. With
        `joined` one for those that servers make one layer of, where they share a scale.

        `ignores` takes the checkpoint's names.
        """
        parts: dict[str, list[str]] = {}
        for name in self._taken(index, ignores):
            parts.setdefault(joined_of(name) if joined else name, []).append(name)
        return self._named(index, [observe.Input(tuple(names)) for names in parts.values()], ignores)

    def sites(self, index: int, hidden: Tensor, ignores: Callable[[str], bool]) -> tuple[Site, ...]:
        """What a layer's linear layers read, observed while a few tokens [rows, tokens, hidden] go through it."""
        layer = self.layers[index]
        taken = set(self._taken(index, ignores))
        shapes = tuple((name, tuple(module.weight.shape)) for name, module in observe.matrices(layer).items())
        turn = self._layer_inputs[self._key(hidden)][index]
        # Layers of one structure, which are called with the same things, read alike.
        kind = (type(layer), shapes, tuple(sorted(taken)), _outline(turn))
        if kind not in self._observed:
            fixed = [name for name, _ in shapes if name not in taken]
            for experts in self.experts[index].values():
                experts.counting = True
            found = observe.shared_inputs(layer, lambda: self.forward(index, hidden, None), fixed)
            for experts in self.experts[index].values():
                experts.counting, experts.routed = False, [0] * len(experts.routed)
            # A layer that no token came to is left alone: there is no data to round it by.
            self._observed[kind] = self._named(index, found, ignores)
        return self._observed[kind]

    def _taken(self, index: int, ignores: Callable[[str], bool]) -> list[str]:
        prefix = f"{self.prefix}.{index}"
        return [
            name
            for name, module in self.layers[index].named_modules()
            if isinstance(module, nn.Linear)
            and not ROUTER.search(name)
            and not ignores(self.names.module(f"{prefix}.{name}"))
        ]

    def _named(self, index: int, found: Iterable[observe.Input], ignores: Callable[[str], bool]) -> tuple[Site, ...]:
        """As sites, without readers that are left alone."""
        taken, named = set(self._taken(index, ignores)), {}
        for one in found:
            readers = tuple(name for name in one.readers if name in taken)
            if not readers:
                continue
            name, routed = self._site_name(index, readers)
            if name in named:
                name = "_".join([*readers[0].split(".")[:-1], name])
            norm = bool(one.absorber) and one.rows is None
            named[name] = Site(name, readers, one.absorber, norm=norm, offset=one.offset, routed=routed, rows=one.rows)
        return tuple(named.values())

    def _site_name(self, index: int, readers: Sequence[str]) -> tuple[str, bool]:
        """What reports call layers that read one input (qkv, o, gate_up), and whether a router sends it tokens."""
        roles = [name.rpartition(".")[2] for name in readers]
        for block, experts in self.experts[index].items():
            if readers[0].startswith(block + "."):
                number = readers[0].removeprefix(block + ".").partition(".")[0]
                roles = [_ROLES[experts.order.index(role) - len(experts.order)] for role in roles]
                return f"expert_{number}_{'_'.join(dict.fromkeys(roles))}", True
        roles = [role.removesuffix("_proj") for role in roles]
        name = ("" if all(len(role) == 1 for role in roles) else "_").join(roles)
        return ("shared_" if ".shared_expert" in f".{readers[0]}" else "") + name, False

    def tensors(self, index: int, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A layer's tensors by their names below it, of the checkpoint's."""
        prefix = f"{self.prefix}.{index}."
        found: dict[str, Tensor] = {}
        for source, tensor in read.items():
            name = self.names.model.get(source, source).removeprefix(prefix)
            block, _, own = name.rpartition(".")
            experts = self.experts[index].get(block)
            if experts is not None and own in FUSED:
                found |= {f"{block}.{key}": part for key, part in split(tensor, experts, own).items()}
            else:
                found[name] = tensor
        return found

    def load(self, read: Callable[[list[str]], dict[str, Tensor]]) -> None:
        """Load the weights before the layers, and compute the buffers that no checkpoint holds."""
        tensors = read([self.full(name) for name in self.outside])
        self.base.load_state_dict({name: tensors[self.full(name)] for name in self.outside}, assign=True, strict=False)
        for name, module in self.base.named_modules():
            if not name.startswith(self._below):
                self.materialize_buffers(module)

    def unload(self) -> None:
        """Free the weights before the layers."""
        self.base.to("meta")

    def materialize_layer(self, index: int) -> None:
        """Compute the buffers of a layer that no checkpoint holds."""
        layer = self.layers[index]
        again: list[nn.Module] = []

        def second(name: str) -> nn.Module:
            """A module of a second such layer, which computes them; its weights are thrown away."""
            if not again:
                again.append(type(layer)(self.text, index))
            return again[0].get_submodule(name)

        for name, module in layer.named_modules():
            self.materialize_buffers(module, lambda name=name: second(name))  # type: ignore[misc]

    def materialize_buffers(self, module: nn.Module, second: Callable[[], nn.Module] | None = None) -> None:
        """Compute a module's own buffers that no checkpoint holds. `second` gives one that has its buffers."""
        lost = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        if not lost:
            return
        if "RotaryEmbedding" in type(module).__name__:
            module._buffers.update(type(module)(config=self.text).to(self.device)._buffers)
            return
        scale = getattr(module, "scalar_embed_scale", None)
        if scale is not None and lost == ["embed_scale"]:
            module._buffers["embed_scale"] = torch.tensor(scale, device=self.device)
            return
        if self._initialized(module, lost):
            return
        try:
            again = second() if second is not None else type(module)(self.text)
            found = {name: again._buffers[name].to(self.device) for name in lost}
        except Exception as error:
            what = f"{type(module).__name__} computes {', '.join(lost)} in a way that gram doesn't know"
            raise Unsupported(what) from error
        module._buffers.update(found)

    @torch.no_grad()
    def _initialized(self, module: nn.Module, lost: list[str]) -> bool:
        """Whether transformers computes these buffers where it initializes weights, as it does after loading."""
        empty = dict(module._buffers)
        for name in lost:
            buffer = module._buffers[name]
            assert buffer is not None
            if not buffer.is_floating_point():
                return False
            module._buffers[name] = torch.full_like(buffer, torch.nan, device=self.device)
        for parameter in module.parameters():
            parameter._is_hf_initialized = True  # Weights stay what they are.
        # Some models compute those of their layers.
        for place in (module, self.base):
            self.model._init_weights(place)
            if not any(bool(module._buffers[name].isnan().any()) for name in lost):
                return True
        module._buffers.update(empty)
        return False

    @torch.no_grad()
    def begin(self, ids: Tensor) -> Tensor:
        """Token ids [rows, tokens] to the first layer's input [rows, tokens, hidden]; captures that length's inputs."""
        self.capture_inputs(ids)
        hidden = self._captured(ids)[0]
        if hidden.dim() != 3:
            raise Unsupported(f"the hidden states of '{self.kind}' have {hidden.dim()} dimensions")
        return hidden

    def _look_at_inputs(self, ids: Tensor) -> None:
        """Whether what layers get depends on how many rows there are (ALiBi's biases do). Raises Unsupported where it
        depends on the tokens: one row's isn't another's.
        """
        plain, others, twice = (self._captured(each)[1] for each in (ids, ids.flip(1), ids.repeat(2, 1)))
        self._by_rows = any(
            isinstance(one, Tensor) and one.shape[0] not in (1, two.shape[0])
            for (args, named), (more, other) in zip(plain, twice, strict=True)
            for one, two in (*zip(args, more, strict=True), *((named[key], other[key]) for key in named))
            if isinstance(one, Tensor) and one.dim()
        )
        for (args, named), (more, other) in zip(plain, others, strict=True):
            for name, one, two in (
                *zip(range(len(args)), args, more, strict=True),
                *((k, named[k], other[k]) for k in named),
            ):
                if isinstance(one, Tensor) and not torch.equal(one, two):
                    what = f"layers of '{self.kind}' read more of a token than its hidden state ({name})"
                    raise Unsupported(what)

    def capture_inputs(self, ids: Tensor) -> None:
        """Capture the layers' inputs for that length, without computing activations."""
        if not self._layer_inputs:
            self._look_at_inputs(ids[:1])
        if self._key(ids) not in self._layer_inputs:
            # One row is enough: rows padded at their end have the same masks and positions.
            self._layer_inputs[self._key(ids)] = self._captured(ids if self._by_rows else ids[:1])[1]

    def _key(self, batch: Tensor) -> tuple[int, int]:
        """Batches [rows, tokens, ...] with one key have the same inputs beside their hidden states."""
        return batch.shape[0] if self._by_rows else 1, batch.shape[1]

    @torch.no_grad()
    def _captured(self, ids: Tensor) -> tuple[Tensor, list[LayerInputs]]:
        # What a model makes of a layer's output: nothing, or it unpacks a tuple.
        for more in (None, (), (None,)):
            first: list[Tensor] = []
            inputs: list[LayerInputs] = []
            for index, layer in enumerate(self.layers):
                layer.forward = _Capture(first, inputs, more, last=index + 1 == len(self.layers))
            try:
                self.base(input_ids=ids, use_cache=False)
            except _Seen:
                return first[0], inputs
            except Exception as error:
                if more:
                    what = f"the forward pass of '{self.kind}' can't be followed layer by layer"
                    raise Unsupported(f"{what} ({type(error).__name__}: {error})") from error
            finally:
                for layer in self.layers:
                    del layer.forward
        raise Unsupported(f"the forward pass of '{self.kind}' doesn't go through the layers in {self.prefix}")

    def forward(
        self, index: int, hidden: Tensor, real: Tensor | None, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """[rows, tokens, hidden] through a layer that has its weights. `real` [rows, tokens]: not padding.

        With `weights` (by name below the layer, in the place of its own) derivatives by them are kept where they are
        enabled, otherwise none are.
        """
        for experts in self.experts[index].values():
            experts.real = None if real is None else real.flatten()
        arguments, named = self._layer_inputs[self._key(hidden)][index]
        with quick(hidden), torch.set_grad_enabled(weights is not None and torch.is_grad_enabled()):
            if weights is None:
                out = self.layers[index](hidden, *arguments, **named)
            else:
                out = torch.func.functional_call(self.layers[index], dict(weights), (hidden, *arguments), named)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


class _Capture:
    def __init__(
        self, first: list[Tensor], inputs: list[LayerInputs], more: tuple[None, ...] | None, *, last: bool
    ) -> None:
        self.first, self.inputs, self.more, self.last = first, inputs, more, last

    def __call__(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
        if self.first and self.first[0].shape != hidden_states.shape:
            raise ValueError("a layer's output was taken apart")
        self.first.append(hidden_states)
        self.inputs.append((arguments, named))
        if self.last:
            raise _Seen
        return hidden_states if self.more is None else (hidden_states, *self.more)


def _outline(value: object) -> object:
    """What an argument of a layer is, without its values: whether there is a mask, which tensors, which names."""
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape)
    if isinstance(value, dict):
        return tuple((key, _outline(each)) for key, each in sorted(value.items()))
    if isinstance(value, tuple | list):
        return tuple(map(_outline, value))
    return type(value).__name__ if value is not None else None


def _built(config: PretrainedConfig) -> PreTrainedModel:
    """The model on meta, by the class that its config names. Raises Unsupported."""
    named: list[Any] = [getattr(transformers, name, None) for name in config.architectures or ()]
    makers = [one._from_config for one in named if hasattr(one, "_from_config")]
    # A config of the checkpoint's own code was read with permission to run that code.
    own = type(config).__module__.partition(".")[0] == "transformers_modules"
    auto = functools.partial(AutoModelForCausalLM.from_config, trust_remote_code=own)
    make: Callable[..., PreTrainedModel] = makers[0] if makers else auto
    # Soft caps of attention's scores: only the plain implementation has them.
    for attention in ("sdpa", "eager"):
        try:
            with torch.device("meta"):
                return make(config, attn_implementation=attention)
        except (ValueError, ImportError) as error:
            reason = error
    raise Unsupported(f"transformers has no model of '{config.model_type}' here: {reason}")


def _prefix(model: PreTrainedModel, text: PretrainedConfig) -> str:
    """Where the decoder layers are: the one list of as many modules as the text part has layers."""
    count = getattr(text, "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and any(module is inside for inside in decoder.modules())
        and not any(part in name for part in ("vision", "visual", "audio", "image"))
    ]
    found = [name for name in found if not any(name.startswith(other + ".") for other in found)]
    if getattr(text, "is_encoder_decoder", False) or len(found) != 1:
        places = ", ".join(found) or "none"
        raise Unsupported(f"'{text.model_type}' has no single list of {count} decoder layers (found: {places})")
    return found[0]
