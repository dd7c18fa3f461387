"""What a release of vLLM ignores or refuses in a checkpoint. Each fact has its source; none is guessed.

- `scale_dtype` and `zp_dtype` in the quantization config: written since compressed-tensors 0.13, refused by vLLM up to
  0.13.0 ("Extra inputs are not permitted"; llm-compressor#2057 and #2234, vllm#30799).
- `rope_parameters`: read since vLLM 0.12.0 (vllm#28542); before it a base of 10000 is taken.
- `TokenizersBackend`: vLLM up to 0.19.0 brings transformers 4, which has no such class (vllm#39279,
  transformers#47553).
- AWQ in bfloat16: refused up to vLLM 0.4 (vllm#1823, #1592). AWQ, GPTQ and FP8 in float32: refused still (vLLM 0.32,
  `get_supported_act_dtypes` of each method); a config's float32 alone is no such case, as vLLM then takes 16 bits.
- GPTQ: symmetric, 4 or 8 bits (vLLM 0.32, `auto_gptq.py`). AWQ: packed for GEMM (`auto_awq.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from packaging.version import Version

from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint import config_compat
from quantize.doctor.checkpoint import Checkpoint
from quantize.doctor.config import CONFIG
from quantize.doctor.quantization_config import Claims

_UNKNOWN_KEY = Code(
    "unknown-key", "The chosen vLLM doesn't know scale_dtype, zp_dtype, or rope_parameters.", fixable=True
)
_TOKENIZER_CLASS = Code("tokenizer-class", "The chosen vLLM's transformers has no such tokenizer class.", fixable=True)
_AWQ_VERSION = Code("awq-version", "The AWQ checkpoint isn't packed for GEMM.")
_GPTQ_KIND = Code("gptq-kind", "vLLM has no kernel for this GPTQ checkpoint.")
_DTYPE_REFUSED = Code("dtype-refused", "No kernel of the method supports the dtype.")

KEYS_SINCE = Version("0.14.0")
ROPE_SINCE = Version("0.12.0")
TRANSFORMERS_4_UNTIL = Version("0.19.0")
AWQ_BFLOAT16_SINCE = Version("0.5")
NEW_KEYS = ("scale_dtype", "zp_dtype")
_NO_FLOAT32 = ("awq", "gptq", "fp8")


def check(
    checkpoint: Checkpoint, claims: Claims | None, vllm: Version | None, dtype: str | None = None
) -> list[Problem]:
    """Problems with this release; None is the newest known.

    `dtype` is the serving dtype; None leaves it to the server, which uses the config's.
    """
    findings = [*_awq_version(checkpoint, claims), *_gptq(claims), *_dtype(checkpoint, claims, vllm, dtype)]
    if vllm is None:
        return findings
    if vllm < KEYS_SINCE and (keys := sorted(set(_new_keys(checkpoint.quantization or {})))):
        what = f"{', '.join(keys)}: vLLM {vllm} refuses a quantization config with these keys"
        hint = f"Remove them (their values are the default), or use vLLM {KEYS_SINCE} or newer."
        findings.append(Problem(_UNKNOWN_KEY, what, CONFIG, hint, fixable=True))
    if vllm < ROPE_SINCE and _only_new_rope(checkpoint.text_config):
        what = f"rope_parameters: vLLM {vllm} ignores it and uses a base of 10000 without a warning"
        hint = f"Write rope_theta and rope_scaling too, or use vLLM {ROPE_SINCE} or newer."
        said = "rope_theta" in config_compat.both(checkpoint.text_config)
        findings.append(Problem(_UNKNOWN_KEY, what, CONFIG, hint, fixable=said))
    tokens = checkpoint.json("tokenizer_config.json").get("extra_special_tokens")
    if vllm <= TRANSFORMERS_4_UNTIL and isinstance(tokens, list):
        what = f"extra_special_tokens is a list, and the transformers 4 of vLLM {vllm} takes a mapping alone"
        hint = "Rename it to additional_special_tokens, or take a newer vLLM."
        findings.append(Problem(_TOKENIZER_CLASS, what, Location("tokenizer_config.json"), hint))
    tokenizer = checkpoint.json("tokenizer_config.json").get("tokenizer_class")
    if vllm <= TRANSFORMERS_4_UNTIL and tokenizer == config_compat.NEW_TOKENIZER:
        what = f"tokenizer_class is {tokenizer}, which transformers 4 of vLLM {vllm} doesn't have"
        hint = f"{config_compat.OLD_TOKENIZER} is equivalent and works in both."
        findings.append(Problem(_TOKENIZER_CLASS, what, Location("tokenizer_config.json"), hint, fixable=True))
    return findings


def _new_keys(found: object) -> Iterator[str]:
    if isinstance(found, Mapping):
        for key, value in found.items():
            if key in NEW_KEYS:
                yield key
            else:
                yield from _new_keys(value)


def _only_new_rope(config: Mapping[str, Any]) -> bool:
    try:
        found = config_compat.rope(config)
    except ValueError:
        return False
    if config.get("rope_parameters") is None or "rope_theta" in config or found is None:
        return False
    return found != config_compat.rope({"rope_theta": config_compat.DEFAULT_THETA})


def _awq_version(checkpoint: Checkpoint, claims: Claims | None) -> list[Problem]:
    version = str((checkpoint.quantization or {}).get("version", "gemm")).lower()
    if claims is None or claims.method != "awq" or version == "gemm":
        return []
    what = f"the version is '{version}', but vLLM reads AWQ packed for GEMM only"
    return [Problem(_AWQ_VERSION, what, CONFIG, 'Quantize again with version: "GEMM".')]


def _gptq(claims: Claims | None) -> list[Problem]:
    if claims is None or claims.method != "gptq" or claims.unread:
        return []
    claim = claims.groups[0][1]
    if claim.symmetric and claim.bits in (4, 8):
        return []
    kind = "symmetric" if claim.symmetric else "asymmetric"
    what = f"{claim.bits} bits, {kind}: vLLM 0.32 reads symmetric GPTQ of 4 or 8 bits only"
    hint = "Quantize with sym: true, or save as compressed-tensors, which supports asymmetric."
    return [Problem(_GPTQ_KIND, what, CONFIG, hint)]


def _dtype(checkpoint: Checkpoint, claims: Claims | None, vllm: Version | None, dtype: str | None) -> list[Problem]:
    method = claims.method if claims else ""
    kind = dtype or config_compat.dtype(checkpoint.config) or config_compat.dtype(checkpoint.text_config)
    old = vllm is not None and vllm < AWQ_BFLOAT16_SINCE
    if method == "awq" and kind == "bfloat16" and old:
        what = f"bfloat16: the AWQ kernels of vLLM {vllm} support float16 only"
        return [Problem(_DTYPE_REFUSED, what, CONFIG, "Serve it with --dtype float16.")]
    if method in _NO_FLOAT32 and dtype == "float32":
        what = f"float32: vLLM's kernels for {method} support float16 and bfloat16"
        return [Problem(_DTYPE_REFUSED, what, CONFIG, "Serve it with --dtype auto.")]
    return []
