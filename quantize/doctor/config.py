"""Config keys that differ from the source's or contradict each other, RoPE above all.

transformers 5 writes `rope_parameters` and `dtype`; transformers 4 reads `rope_theta`, `rope_scaling` and
`torch_dtype`, doesn't know the new keys, and falls back to its defaults (a RoPE base of 10000) without a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint import config_compat
from quantize.doctor.checkpoint import Checkpoint

CONFIG = Location("config.json")

_ROPE = Code("rope", "RoPE differs from the source's, or the config contradicts itself.", fixable=True)
_DTYPE = Code("dtype", "dtype and torch_dtype differ.")
_DIFFERS = Code("config-differs", "A config key that changes the computation differs from the source's.")
_END_TOKEN = Code("end-token", "An end token of the source is missing.", fixable=True)

# Keys that decide what the model computes. A difference from the source is an error.
_SAME = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "layer_norm_eps", "vocab_size",
         "sliding_window", "max_position_embeddings", "num_experts", "num_local_experts", "num_experts_per_tok",
         "attention_bias", "mlp_bias")  # fmt: skip


def check(checkpoint: Checkpoint, source: Checkpoint | None) -> list[Problem]:
    """Contradictions in the config, and with a source its differences from the source's."""
    if not checkpoint.config:
        return []
    findings = [*_rope(checkpoint.text_config), *_dtype(checkpoint.config)]
    if source is not None and source.config:
        findings += _against(checkpoint, source)
    return findings


def _rope(config: Mapping[str, Any]) -> list[Problem]:
    try:
        conflict = config_compat.rope_conflict(config)
    except ValueError as error:
        return [Problem(_ROPE, str(error), CONFIG, "Copy the source's RoPE keys.")]
    if conflict is None:
        return []
    what = f"contradicts itself on RoPE: {conflict}; which one is used depends on the server's transformers"
    return [Problem(_ROPE, what, CONFIG, "Keep the source's: --against SOURCE --fix.")]


def _dtype(config: Mapping[str, Any]) -> list[Problem]:
    new, old = config.get("dtype"), config.get("torch_dtype")
    if not new or not old or str(new).removeprefix("torch.") == str(old).removeprefix("torch."):
        return []
    what = f"dtype is {new} and torch_dtype is {old}: which one is used depends on the server's transformers"
    return [Problem(_DTYPE, what, CONFIG, "Keep one of them, or make them equal.", "warning")]


def _against(checkpoint: Checkpoint, source: Checkpoint) -> list[Problem]:
    findings = []
    ours, theirs = checkpoint.text_config, source.text_config
    for key in _SAME:
        # Null means the model's default, which newer releases write out.
        mine, wanted = ours.get(key), theirs.get(key)
        if mine is not None and wanted is not None and mine != wanted and not _close(mine, wanted):
            what = f"is {mine}, and the source's is {wanted}"
            findings.append(Problem(_DIFFERS, what, Location("config.json", key=(key,)), "Copy the source's value."))
    try:
        rope, same = config_compat.rope(ours), config_compat.rope(theirs)
    except ValueError:
        rope, same = None, None
    # Without RoPE keys the source has its model's default, which isn't known here.
    if same is not None and rope != same:
        what = f"RoPE is {config_compat.plain(rope)}, and the source's is {config_compat.plain(same)}"
        findings.append(Problem(_ROPE, what, CONFIG, "Copy the source's value.", fixable=True))
    findings += _ends(checkpoint, source)
    return findings


def _close(ours: object, theirs: object) -> bool:
    """Whether two floats are equal but for the precision they are written in."""
    if isinstance(ours, float) and isinstance(theirs, float):
        return abs(ours - theirs) <= 1e-6 * max(abs(ours), abs(theirs))
    return False


def _ends(checkpoint: Checkpoint, source: Checkpoint) -> list[Problem]:
    """The tokens that end an answer."""
    ours, theirs = (_end_tokens(each) for each in (checkpoint, source))
    lost = theirs - ours
    if not lost or "generation_config.json" not in checkpoint.files:
        return []  # a missing file is reported as such
    what = f"the source's end tokens are {sorted(theirs)}, these are {sorted(ours)}: answers don't stop"
    return [Problem(_END_TOKEN, what, Location("generation_config.json"), "Copy the source's file.", fixable=True)]


def _end_tokens(checkpoint: Checkpoint) -> set[int]:
    found = checkpoint.json("generation_config.json").get("eos_token_id", checkpoint.text_config.get("eos_token_id"))
    tokens = found if isinstance(found, list) else [found]
    return {token for token in tokens if isinstance(token, int)}
