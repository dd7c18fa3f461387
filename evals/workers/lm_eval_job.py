"""Job and answer of the worker that runs lm-eval; qpack and the worker both import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass(frozen=True)
class Generation:
    """How answers are generated over /v1/chat/completions: `repeats` answers per item, each of at most `max_tokens`
    (None: the task's own limit). `system` is a system message, `think_end` the text after which an answer begins, where
    the server has no reasoning parser; `template` are arguments of the chat template.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repeats: int = 1
    max_tokens: Optional[int] = None
    system: Optional[str] = None
    think_end: str = "</think>"
    template: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class WantedTask:
    """`load` is lm-eval's name of a task or group; `limit` None is all items of each task, `metric` None the first (of
    a group: the one that its score has), `few_shot` None the task's own number. `chat`: through the chat template;
    `generation`: over /v1/chat/completions.
    """

    name: str
    load: str
    limit: Optional[int]
    few_shot: Optional[int]
    chat: bool
    metric: Optional[str]
    generation: Optional[Generation] = None


@dataclass(frozen=True)
class Job:
    """`tokenizer` is a folder, `max_length` the server's limit in tokens, `part` from which to which share of each
    task's items, in their random order. `tasks_dir` has this project's task files, `data_root` their data files.
    `chat_concurrency` chat requests are in flight.
    """

    base_url: str
    model: str
    tokenizer: str
    max_length: int
    concurrency: int
    batch_size: int
    seed: int
    part: tuple[float, float]
    timeout_seconds: float
    tasks_dir: str
    data_root: str
    tasks: tuple[WantedTask, ...]
    chat_concurrency: int = 16


@dataclass(frozen=True)
class Generated:
    """The answers to one item, repeat by repeat: generated `tokens` (thinking included), how many were `truncated` at
    the limit of tokens, and how many of those ended in a loop.
    """

    tokens: tuple[int, ...]
    truncated: int
    looped: int


@dataclass(frozen=True)
class ScoredItem:
    """`id` is task:index:digest of the item; `score` is the mean over repeats."""

    id: str
    score: float
    generated: Optional[Generated] = None


@dataclass(frozen=True)
class ScoredTask:
    """Items in the order of the data set, task after task of a group; `chat_template` is the SHA-256 of the template
    that prompts went through. `chance` is the mean score of guessing, where it is known. `tasks` counts the tasks of a
    group.
    """

    task: str
    version: str
    metric: str
    few_shot: int
    limit: Optional[int]
    seed: int
    mean: float
    samples: tuple[ScoredItem, ...]
    chat_template: Optional[str]
    chance: Optional[float] = None
    tasks: int = 1


@dataclass(frozen=True)
class Answer:
    """`added_bos`: prompts began with BOS; `requests` is how many the server answered."""

    lm_eval_version: str
    added_bos: bool
    requests: int
    tasks: tuple[ScoredTask, ...]
