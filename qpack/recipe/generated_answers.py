"""What can't work about tasks that are asked over chat, known from the recipe alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evals.gates.gates import GENERATION_GATES
from evals.measure import suite
from evals.server import first_questions
from qpack.core.problems import Code, Location, Problem
from qpack.recipe.eval_requests import requests
from qpack.recipe.recipe_file import ABOVE_MODEL_LEN, EXCLUSIVE_KEYS, UNMEASURED_GATE, Loaded
from quantize.checkpoint import picture_placeholder

_NO_TEMPLATE = Code("no-chat-template", "A task is asked over chat, and the model has no chat template.")
_NO_PICTURES = Code("no-pictures", "A task asks about pictures, and the model takes none.")


def no_template(loaded: Loaded, checkpoint: Path | None) -> list[Problem]:
    """Tasks over chat of a model whose folder has no chat template. Nothing is known of one that isn't a folder yet."""
    recipe = loaded.recipe
    if checkpoint is None or not checkpoint.is_dir() or first_questions.has_chat_template(checkpoint):
        return []
    return [
        loaded.problem(
            _NO_TEMPLATE,
            f"{choice.task} is asked over chat, and the model has no chat template.",
            *("evaluate", "tasks", i),
            hint="Take tasks that aren't generated over chat.",
        )
        for i, choice in enumerate(recipe.evaluate.tasks)
        if any(request.generation is not None for request in requests(recipe, choice))
    ]


def no_pictures(loaded: Loaded, config: Mapping[str, object]) -> list[Problem]:
    """Tasks with pictures of a model whose config describes no encoder of images, or is served without it."""
    recipe = loaded.recipe
    served = not recipe.serve.arguments.get("language-model-only")
    if isinstance(config.get("vision_config"), Mapping) and served:
        return []
    return [
        loaded.problem(
            _NO_PICTURES,
            f"{choice.task} asks about pictures, and the model takes none as it is served.",
            *("evaluate", "tasks", i),
            hint="Take tasks of text alone.",
        )
        for i, choice in enumerate(recipe.evaluate.tasks)
        if any(suite.TASKS[one.name].pictures for one in requests(recipe, choice) if one.name in suite.TASKS)
    ]


def unplaced_pictures(loaded: Loaded, checkpoint: Path | None, config: Mapping[str, object]) -> list[Problem]:
    """A chat template that gives pictures no place, of a model that is served as taking them: the canary sends one."""
    arguments = loaded.recipe.serve.arguments
    limits = arguments.get("limit-mm-per-prompt")
    none = isinstance(limits, Mapping) and limits.get("image") == 0
    if checkpoint is None or not checkpoint.is_dir() or none or arguments.get("language-model-only"):
        return []
    tokens = picture_placeholder.lacks(checkpoint, config)
    if not tokens:
        return []
    what = f"{picture_placeholder.described(tokens)}, and the canary sends one"
    hint = "Add the placeholder to the template, or serve text alone: `limit-mm-per-prompt: {image: 0}`."
    return [Problem(picture_placeholder.UNPLACED, what, Location(key=("serve", "arguments")), hint, "warning")]


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
