"""Tasks whose items are made by code: word problems, instructions, facts in long texts, tool calls, code, pictures.

No data set is needed, and none can have been trained on. Items follow from a fixed seed: the same in every Python, for
every model. lm-eval imports this file by its path, inside its own environment (see utils.py). Each item is a user's
message (`prompt`) and, as JSON text in `check`, what its answer is judged by.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

ITEMS = 400
"""Items of each task; retrieval has `RETRIEVED`."""
RETRIEVED = 100

_NAMES = ("Ada", "Ben", "Chen", "Dara", "Elif", "Femi", "Gita", "Hugo", "Iris", "Jun", "Kofi", "Lena", "Milo", "Nora")
_THINGS = ("apples", "books", "coins", "cards", "eggs", "marbles", "pencils", "stamps", "shells", "tickets")
_PLACES = ("Lisbon", "Nairobi", "Oslo", "Quito", "Riga", "Seoul", "Tunis", "Vienna", "Zagreb", "Lima", "Hanoi", "Cairo")
_JOBS = ("nurse", "pilot", "baker", "teacher", "plumber", "painter", "lawyer", "farmer")
_TOPICS = (
    "the sea",
    "a train journey",
    "winter",
    "bread",
    "a library",
    "chess",
    "gardens",
    "the moon",
    "old maps",
    "tea",
)
_WORDS = ("river", "silver", "garden", "window", "music", "lantern", "morning", "paper", "bridge", "summer")


def word_problems() -> list[dict[str, Any]]:
    """Arithmetic in one to four steps, the answer a whole number that isn't negative."""
    docs = []
    for index in range(ITEMS):
        rng = random.Random(f"word problem {index}")
        name, other = rng.sample(_NAMES, 2)
        thing = rng.choice(_THINGS)
        count = rng.randint(3, 20)
        said = [f"{name} has {count} {thing}."]
        for _ in range(1 + index % 4):
            step = rng.choice(("more", "gives", "times", "packs", "shares"))
            if step == "gives" and count > 2:
                part = rng.randint(1, count - 1)
                count -= part
                said.append(f"{name} gives {part} of them to {other}.")
            elif step == "times" and count <= 60:
                factor = rng.randint(2, 3)
                count *= factor
                said.append(f"Then the number of {thing} that {name} has becomes {factor} times as large.")
            elif step == "packs":
                packs, size = rng.randint(2, 5), rng.randint(2, 9)
                count += packs * size
                said.append(f"{name} buys {packs} packs with {size} {thing} each.")
            elif step == "shares" and count % 2 == 0 and count > 1:
                count //= 2
                said.append(f"{name} keeps half of them and sells the rest.")
            else:
                part = rng.randint(2, 15)
                count += part
                said.append(f"{name} finds {part} more {thing}.")
        asked = f"How many {thing} does {name} have now? Think step by step. End with a line 'Answer: ' and the number."
        docs.append({"prompt": f"{' '.join(said)} {asked}", "check": json.dumps({"number": count})})
    return docs


def judge_number(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """1 if the number behind the last 'Answer:', or else the last number, is the right one."""
    reply = results[0]
    behind = re.split(r"answer\s*:", reply, flags=re.IGNORECASE)
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", behind[-1]) if len(behind) > 1 else []
    found = found[:1] or re.findall(r"-?\d[\d,]*(?:\.\d+)?", reply)[-1:]
    right = bool(found) and float(found[0].replace(",", "")) == json.loads(doc["check"])["number"]
    return {"exact_match": float(right)}


def instructions() -> list[dict[str, Any]]:
    """Instructions that a rule can judge: JSON extraction in one of three items, else one to three limits of form."""
    docs = []
    for index in range(2 * ITEMS):
        rng = random.Random(f"instruction {index}")
        if index % 3 == 0:
            person = {"name": rng.choice(_NAMES), "age": rng.randint(18, 80), "city": rng.choice(_PLACES)}
            job = rng.choice(_JOBS)
            text = f"{person['name']}, a {job} of {person['age']} years, has lived in {person['city']} since childhood."
            prompt = (
                f'Extract the facts from this text: "{text}" Reply with one JSON object that has the keys name (text), '
                "age (number) and city (text), and with nothing else."
            )
            docs.append({"prompt": prompt, "check": json.dumps([{"json": person}])})
            continue
        kinds = rng.sample(("most_words", "word", "without", "lower", "begins", "ends", "sentences"), rng.randint(1, 3))
        if "lower" in kinds:
            kinds = [kind for kind in kinds if kind not in ("begins", "ends")]
        rules = [_rule(kind, rng) for kind in kinds]
        asked = " ".join(said for _, said in rules)
        prompt = f"Write a short text about {rng.choice(_TOPICS)}. {asked}"
        docs.append({"prompt": prompt, "check": json.dumps([check for check, _ in rules])})
    return _distinct(docs)


def _distinct(docs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first `ITEMS` with different prompts: a duplicate would count as an independent item."""
    return list({doc["prompt"]: doc for doc in docs}.values())[:ITEMS]


def _rule(kind: str, rng: random.Random) -> tuple[dict[str, Any], str]:
    """A check, and the instruction in words."""
    if kind == "most_words":
        most = rng.choice((20, 30, 50))
        return {kind: most}, f"Use at most {most} words."
    if kind == "word":
        word = rng.choice(_WORDS)
        return {kind: word}, f"Include the word '{word}'."
    if kind == "without":
        sign = rng.choice((",", "!", "-"))
        return {kind: sign}, f"Don't use the character '{sign}'."
    if kind == "lower":
        return {kind: True}, "Write in lowercase letters only."
    if kind == "begins":
        word = rng.choice(("Today", "Once", "Perhaps"))
        return {kind: word}, f"Begin with the word '{word}'."
    if kind == "ends":
        word = rng.choice(("Enough said.", "That is all.", "The end."))
        return {kind: word}, f"End with the exact words '{word}'"
    count = rng.randint(2, 3)
    return {"sentences": count}, f"Write exactly {count} sentences."


def judge_instructions(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Whether all instructions of an item were kept, and each one, as IFEval's strict scores."""
    kept = [_keeps(results[0].strip(), check) for check in json.loads(doc["check"])]
    return {"prompt_level_strict_acc": all(kept), "inst_level_strict_acc": kept}


def share(items: list[list[bool]]) -> float:
    """lm-eval's aggregation of lists: the share of all instructions that were kept."""
    every = [kept for item in items for kept in item]
    return sum(every) / len(every)


def _keeps(reply: str, check: dict[str, Any]) -> bool:
    """Whether a reply keeps one rule; an empty reply keeps none."""
    ((kind, wanted),) = check.items()
    if not reply:
        return False
    if kind == "json":
        return json_of(reply) == wanted
    if kind == "most_words":
        return len(reply.split()) <= wanted
    if kind == "word":
        return re.search(rf"\b{re.escape(wanted)}\b", reply, re.IGNORECASE) is not None
    if kind == "without":
        return wanted not in reply
    if kind == "lower":
        return reply == reply.lower()
    if kind == "begins":
        return reply.startswith(wanted)
    if kind == "ends":
        return reply.endswith(wanted)
    return len(re.findall(r"[.!?]+(?=\s|$)", reply)) == wanted


def json_of(reply: str) -> Any:
    """The JSON of a reply, in a code fence or alone; None for anything else."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", reply.strip(), re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else reply.strip())
    except (ValueError, RecursionError):
        return None


def _retrieval(sentences: int) -> list[dict[str, Any]]:
    """Codes of places in filler text of so many sentences; one is asked for, the others are there to be confused."""
    docs = []
    for index in range(RETRIEVED):
        rng = random.Random(f"retrieval {sentences} {index}")
        codes = {place: rng.randint(10_000, 99_999) for place in rng.sample(_PLACES, 4)}
        lines = [
            f"{rng.choice(_NAMES)} talked about {rng.choice(_TOPICS)} and {rng.choice(_THINGS)} for a while."
            for _ in range(sentences)
        ]
        wanted = next(iter(codes))
        depth = index % 10 / 9
        for place, code in codes.items():
            at = round(depth * len(lines)) if place == wanted else rng.randint(0, len(lines))
            lines.insert(at, f"The code of the office in {place} is {code}.")
        prompt = f"{' '.join(lines)}\n\nWhat is the code of the office in {wanted}? Reply with the number alone."
        docs.append({"prompt": prompt, "check": json.dumps({"number": codes[wanted]})})
    return docs


def retrieval_1k() -> list[dict[str, Any]]:
    """About 1,000 tokens."""
    return _retrieval(60)


def retrieval_4k() -> list[dict[str, Any]]:
    """About 4,000 tokens."""
    return _retrieval(260)


def retrieval_16k() -> list[dict[str, Any]]:
    """About 16,000 tokens."""
    return _retrieval(1060)


_TOOLS: tuple[dict[str, Any], ...] = (
    {"name": "get_weather", "parameters": {"city": "string", "days": "integer"}},
    {"name": "convert_currency", "parameters": {"amount": "number", "source": "string", "target": "string"}},
    {"name": "book_table", "parameters": {"city": "string", "people": "integer", "vegetarian": "boolean"}},
    {"name": "set_alarm", "parameters": {"hour": "integer", "minute": "integer"}},
    {"name": "send_message", "parameters": {"recipient": "string", "text": "string"}},
)


def tool_calls() -> list[dict[str, Any]]:
    """One right call among three tools that are described in the message."""
    docs = []
    for index in range(2 * ITEMS):
        rng = random.Random(f"tool call {index}")
        tool = _TOOLS[index % len(_TOOLS)]
        said, arguments = _wanted(tool["name"], rng)
        offered = [tool, *rng.sample([other for other in _TOOLS if other != tool], 2)]
        rng.shuffle(offered)
        described = "\n".join(json.dumps(each) for each in offered)
        prompt = (
            f"You can call one of these functions:\n{described}\n\n{said}\n\nReply with one JSON object and nothing "
            'else: {"name": the function, "arguments": an object with all of its parameters}.'
        )
        check = {"name": tool["name"], "arguments": arguments, "parameters": tool["parameters"]}
        docs.append({"prompt": prompt, "check": json.dumps(check)})
    return _distinct(docs)


def _wanted(tool: str, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """What a user says, and the arguments of the right call."""
    city, days = rng.choice(_PLACES), rng.randint(2, 7)
    if tool == "get_weather":
        return f"What will the weather be in {city} over the next {days} days?", {"city": city, "days": days}
    if tool == "convert_currency":
        amount, (source, target) = rng.randint(5, 900), rng.sample(("EUR", "USD", "JPY", "GBP"), 2)
        return f"How much are {amount} {source} in {target}?", {"amount": amount, "source": source, "target": target}
    if tool == "book_table":
        people, greens = rng.randint(2, 8), rng.random() < 0.5
        kind = "with vegetarian food" if greens else "where vegetarian food doesn't matter (false)"
        said = f"Book a table for {people} people in {city}, {kind}."
        return said, {"city": city, "people": people, "vegetarian": greens}
    if tool == "set_alarm":
        hour, minute = rng.randint(5, 22), rng.choice((0, 15, 30, 45))
        return f"Wake me at {hour}:{minute:02d}.", {"hour": hour, "minute": minute}
    name, text = rng.choice(_NAMES), rng.choice(("I am late", "Happy birthday", "Call me back"))
    return f"Tell {name}: {text}", {"recipient": name, "text": text}


_TYPES: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def judge_call(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """`valid_call`: a call of an offered function with parameters of the right types. `right_call`: the right one."""
    check, call = json.loads(doc["check"]), json_of(results[0])
    valid = right = False
    if isinstance(call, dict) and call.keys() == {"name", "arguments"} and isinstance(call["arguments"], dict):
        given = call["arguments"]
        tools = {tool["name"]: tool["parameters"] for tool in _TOOLS}
        wanted = tools.get(call["name"]) if isinstance(call["name"], str) else None
        valid = (
            wanted is not None
            and given.keys() == wanted.keys()
            and all(
                isinstance(given[key], _TYPES[kind]) and (kind == "boolean") == isinstance(given[key], bool)
                for key, kind in wanted.items()
            )
        )
        right = (
            valid
            and call["name"] == check["name"]
            and all(_same(given[key], value) for key, value in check["arguments"].items())
        )
    return {"right_call": float(right), "valid_call": float(valid)}


def _same(given: Any, wanted: Any) -> bool:
    if isinstance(wanted, str):
        return isinstance(given, str) and given.strip(" .!").casefold() == wanted.casefold()
    return bool(given == wanted)


def functions() -> list[dict[str, Any]]:
    """Small functions to be written (code_items.py)."""
    found: list[dict[str, Any]] = _beside(Path(__file__).parent / "code_items.py").functions()
    return found


def judge_code(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """1 if the reply's function gives the right value in each call, run in a sandbox (sandbox.py)."""
    items = _beside(Path(__file__).parent / "code_items.py")
    sandbox = _beside(Path(__file__).parent / "sandbox.py")
    check = json.loads(doc["check"])
    given = sandbox.values(items.code_of(results[0]), check["function"], check["calls"])
    return {"passes": float(items.right(given, check))}


def pictures() -> list[dict[str, Any]]:
    """Questions about drawn pictures (picture_items.py)."""
    found: list[dict[str, Any]] = _beside(Path(__file__).parent / "picture_items.py").pictures()
    return found


def judge_picture(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """1 if the reply has the right word and none of the wrong ones."""
    items = _beside(Path(__file__).parent / "picture_items.py")
    return {"right_word": float(items.right(results[0], json.loads(doc["check"])))}


def _beside(file: Path) -> Any:
    """A module beside this one, which lm-eval doesn't have on its path."""
    name = f"qpack_tasks_{file.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


MAKERS = {
    "code": functions,
    "pictures": pictures,
    "word_problems": word_problems,
    "instructions": instructions,
    "retrieval_1k": retrieval_1k,
    "retrieval_4k": retrieval_4k,
    "retrieval_16k": retrieval_16k,
    "tool_calls": tool_calls,
}


def dataset(*, made: str, **_metadata: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset`: `made` is in the task's dataset_kwargs."""
    from datasets import Dataset  # type: ignore[import-not-found, unused-ignore]  # comes with lm-eval

    return {"test": Dataset.from_list(MAKERS[made]())}
