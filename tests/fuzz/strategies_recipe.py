"""Recipes near valid ones, and `--set` settings near those that people write."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.mutations import HOSTILE_TEXTS, HUGE_NUMBERS, YAML_TEXTS, yaml_documents
from tests.unit.recipes import RECIPE

SMALL: dict[str, Any] = yaml.safe_load(RECIPE)
FULL: dict[str, Any] = copy.deepcopy(SMALL)
FULL["model"].update(trust_remote_code=False, license="MIT")
FULL["quantize"].update(
    engine="auto",
    format="compressed-tensors",
    ignore=["lm_head", "re:.*gate$"],
    overrides=[{"layers": "re:.*down_proj", "scheme": "W8A8", "group_size": None}],
    damping=0.01,
    kv_cache="fp8",
)
FULL["evaluate"].update(few_shot=0, seed=0, top_k=16, needle={"depths": [0.0, 1.0], "prompts": 2, "answer_tokens": 16})
FULL["evaluate"]["perplexity"] = {
    "texts": [{"name": "a", "source": "held-out.jsonl", "field": "text"}, {"name": "b", "source": "texts.jsonl"}],
    "windows": 2,
    "window_tokens": 16,
    "continue_tokens": 4,
}
FULL["measure"] = {"concurrency": [1, 2], "input_tokens": 32, "output_tokens": 16, "objective": {"ttft_ms": 500}}
FULL["gates"].update(perplexity_ratio=1.2)
FULL["serve"].update(
    max_model_len=2048,
    dtype="auto",
    kv_cache_gib=0.5,
    tensor_parallel=1,
    arguments={"enforce-eager": True, "speculative-config": {"model": "x", "num_speculative_tokens": 3}},
    environment={"VLLM_LOGGING_LEVEL": "INFO"},
    profiles={"gpu": {"target": "hopper", "tensor_parallel": 2, "arguments": {"enforce-eager": None}}},
)
FULL["publish"] = {"registry": "local", "version": None, "alias": "latest"}
FULL["limits"] = {"stage_minutes": 10, "server_start_minutes": 5}
FULL["environments"] = {}

# The layers of tests.unit.recipes.checkpoint have names of the usual kind: what hostile expressions are held against.
PATTERNS = st.sampled_from(
    [
        *("re:(a+)+$", "re:([a-z0-9._]+)*!", "re:(.*)*x", "re:((((", "re:" + "a?" * 99 + "!", "re:(?i)x", "re:(?=.*)*"),
        *("re:\\1", "re:[", "re:" + "(" * 3000, "re:(?P<a>.)(?P=a)", "re:" + ".*" * 40),
    ]
)


@st.composite
def recipes(draw: st.DrawFn) -> bytes:
    """A recipe's file."""
    valid = copy.deepcopy(draw(st.sampled_from([SMALL, FULL, FULL])))
    if draw(st.integers(0, 5)) == 0:
        valid["quantize"]["ignore"] = draw(st.lists(PATTERNS, max_size=3))
        return json.dumps(valid).encode()
    return draw(yaml_documents(valid))


_KEYS = [
    *("name", "model.source", "quantize.group_size", "quantize.ignore", "evaluate.tasks.0.samples"),
    *("serve.kv_cache_gib", "serve.arguments.seed", "serve", "gates", "limits.stage_minutes", "evaluate.tasks"),
]
_VALUES = ["1", "[1, 2]", "{a: 1}", "null", "true", "08", "0o7", "[[1]]", "*a", "&a [*a]", "- " * 500]


@st.composite
def settings(draw: st.DrawFn) -> str:
    """A `--set` setting: a key or a hostile one, and any value."""
    odd = ["", ".", "a..b", "evaluate.tasks.\u00b2", "evaluate.tasks." + "9" * 5000, "evaluate.tasks.-1", "\udcff",
           "a." * 2000 + "b", "gates.0", "name.x"]  # fmt: skip
    key = draw(st.sampled_from([*_KEYS, *_KEYS, *odd]))
    value = draw(
        st.one_of(
            st.sampled_from(YAML_TEXTS),
            st.sampled_from(HOSTILE_TEXTS),
            st.sampled_from(HUGE_NUMBERS).map(str),
            st.sampled_from(
                ["1", "[1, 2]", "{a: 1}", "null", "true", "08", "0o7", "[[1]]", "*a", "&a [*a]", "- " * 500]
            ),
            st.text(max_size=10),
        )
    )
    return f"{key}{draw(st.sampled_from(['=', '=', '=', '']))}{value}"
