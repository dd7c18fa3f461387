"""What can't work about tasks that are asked over chat, known from the recipe alone."""

from __future__ import annotations

from evals.gates.gates import GENERATION_GATES
from evals.measure import suite
from qpack.core.problems import Problem
from qpack.recipe.eval_requests import requests
from qpack.recipe.recipe_file import ABOVE_MODEL_LEN, EXCLUSIVE_KEYS, UNMEASURED_GATE, Loaded


def problems(loaded: Loaded) -> list[Problem]:
    """Answers that fit into the served context, and gates on answers that nothing generates."""
    recipe, generated = loaded.recipe, False
    found: list[Problem] = []
    room = recipe.serve.max_model_len
    for i, choice in enumerate(recipe.evaluate.tasks):
        at = ("evaluate", "tasks", i)
        for request in requests(recipe, choice):
            if request.generation is None:
                continue
            generated = True
            own = suite.TASKS.get(request.name)
            answer = request.generation.max_tokens or (own.answer_tokens if own else 0)
            prompt = own.tokens if own else 1
            if prompt + answer > room:
                what = f"{request.name} needs about {prompt + answer:,} tokens, above serve.max_model_len {room:,}"
                key = ("generate", "max_tokens") if choice.generate and choice.generate.max_tokens else ("task",)
                found.append(loaded.problem(ABOVE_MODEL_LEN, what, *at, *key))
        if choice.generate is not None and choice.chat:
            hint = "Remove `chat`: `generate` applies the template too."
            found.append(loaded.problem(EXCLUSIVE_KEYS, "chat and generate exclude each other.", *at, hint=hint))
    for gate in recipe.gates.bounds():
        if gate in GENERATION_GATES and not generated:
            hint = "Add a task with `generate`, or e.g. suite:reasoning."
            what = "no task is asked over chat"
            found.append(loaded.problem(UNMEASURED_GATE, what, "gates", gate, hint=hint))
    return found
