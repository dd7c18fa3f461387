"""Serving manifests as somebody would write them who wants a server, or a reader of an export, to do something else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

import tests.unit.registry_examples as examples
from registry.serving import flag_table, trust

TABLE = flag_table.flags()

# Words that mean something to a parser of command lines, a shell, or one of the formats that a manifest is written in.
HOSTILE = (
    *("--trust-remote-code", "--worker-cls=evil.Worker", "-O3", "-tp", "--", "-", "--config", "--config=evil.yaml"),
    *(
        "--hf-overrides.architectures+",
        "--speculative-config.model",
        "-cc.backend=evil",
        "--help",
        "-1",
        "-1.5",
        "-x.y",
    ),
    *(
        "@/etc/passwd",
        "@args",
        "$HOME",
        "$(id)",
        "`id`",
        "$$",
        "$$(id)",
        "${HOME:-x}",
        "$(HOME)",
        "%h",
        "%%",
        "%n",
        "\\",
    ),
    *("a b", "it's", 'a"b', "a;b", ";", "#x", "a#b", "a\\", "a'b\"c", "a\\nb", "a|b", "&", "*", "~", "!x", "=", ""),
    *("{{ .Values.x }}", '{{ printf "%s" "x" }}', "{{`", "}}", "{", "{{{", "[[name]]", "${name}", "<b>", "[x](y)"),
    *("null", "true", "False", "None", "yes", "0x10", "1e3", "1_000", " 1", "NaN", "Infinity", "1e400", "010", "2k"),
    *("evil.Class", "evil:Class", "/tmp/evil.py", "../x", "org/name", "C:\\x", "http://evil/x", "ä", "模型", "·"),
)
# What a manifest may not hold at all.
UNSEEN = (
    "a\nb",
    "a\rb",
    "\t",
    "\x1b[31m",
    "\x00",
    "\u202egnp",
    "\u200b",
    "\u2066x",
    "\u2028",
    "\x7f",
    "\x85",
    "\ufeff",
)
EVIL_NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.5, 1.5, float("inf"), float("nan"), 1e308)

texts = st.sampled_from(HOSTILE) | st.sampled_from(UNSEEN) | st.text(max_size=12)
scalars = texts | st.sampled_from(EVIL_NUMBERS) | st.booleans() | st.none()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def flag_names(draw: st.DrawFn) -> str:
    """A flag of vLLM, or what its parser might take for one."""
    tuning, known = sorted(trust.FLAGS), sorted(TABLE)
    name = draw(st.sampled_from(tuning if draw(st.integers(0, 2)) else known))
    form = draw(st.integers(0, 40))
    if form == 1:
        return name[: draw(st.integers(1, len(name)))]
    if form == 2:
        return name.replace("-", "_")
    if form == 3:
        return f"no-{name}"
    if form == 4:
        return f"{draw(st.sampled_from(['-', '--', ' ', '=']))}{name}"
    if form == 5:
        return f"{name}{draw(st.sampled_from(['=x', '.model', '+', ' ', '.a.b+', chr(10)]))}"
    if form == 6:
        return draw(st.sampled_from(["O", "O3", "tp", "q", "asc", "help", "model-tag", "", "n", "cc.backend"]) | texts)
    return name


@st.composite
def plausible(draw: st.DrawFn, flag: str) -> Any:
    """A value of the flag's own type, or nearly."""
    known = TABLE.get(flag)
    if known is None or draw(st.integers(0, 7)) == 0:
        return draw(values)
    if known.fields:
        keys = st.sampled_from(sorted(known.fields)) | texts
        made = draw(st.dictionaries(keys, values, max_size=2)) if draw(st.integers(0, 3)) == 0 else {}
        for key in draw(st.lists(st.sampled_from(sorted(known.fields)), max_size=3)):
            made[key] = draw(_one(known.fields[key]))
        return json.dumps(made) if draw(st.integers(0, 4)) == 0 else made
    one = _one(known)
    if known.many or draw(st.integers(0, 9)) == 0:
        return draw(st.lists(one if draw(st.integers(0, 3)) else scalars, max_size=3))
    return draw(one)


def _one(known: flag_table.Flag) -> st.SearchStrategy[Any]:
    if known.type in ("switch", "on"):
        return st.booleans()
    if known.choices:
        return st.sampled_from(sorted(known.choices))
    numbers = st.integers(-3, 4096)
    return {
        "int": numbers | numbers.map(str),
        "size": numbers | st.sampled_from(["2k", "1K", "1.5m"]),
        "float": st.floats(-1, 2) | st.sampled_from(["0.9", "1"]),
        "json": st.dictionaries(texts, values, max_size=2),
    }.get(known.type, st.sampled_from(["auto", "vllm", "assistant", "org/name"]) | texts)


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Up to four flags."""
    return {flag: draw(plausible(flag)) for flag in draw(st.lists(flag_names(), max_size=3))}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A `serving.json` as data: its flags are hostile, and now and then another field, however deep."""
    made: dict[str, Any] = examples.serving().model_dump(mode="json", by_alias=True)
    made["arguments"] = draw(arguments())
    made["profiles"] = {"other": {"arguments": draw(arguments())}} if draw(st.integers(0, 3)) == 0 else {}
    if draw(st.integers(0, 7)) == 0:
        made["environment"] = draw(st.dictionaries(st.sampled_from(sorted(trust.VARIABLES)) | texts, texts, max_size=3))
    if draw(st.integers(0, 7)) == 0:
        holder, key = made, draw(st.sampled_from([*made, "model", "engine", "probes"]))
        while isinstance(holder[key], dict) and holder[key] and draw(st.integers(0, 5)):
            holder, key = holder[key], draw(st.sampled_from(sorted(holder[key])))
        holder[key] = draw(values)
    return made
