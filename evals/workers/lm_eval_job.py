"""Job and answer of the worker that runs lm-eval; qpack and the worker both import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class WantedTask:
    """`load` is lm-eval's name; `limit` None is all items, `metric` None the task's first. `chat`: through the chat
    template.
    """

    name: str
    load: str
    limit: Optional[int]
    few_shot: int
    chat: bool
    metric: Optional[str]


@dataclass(frozen=True)
class Job:
    """`tokenizer` is a folder, `max_length` the server's limit in tokens, `part` from which to which share of each
    task's items, in their random order. `tasks_dir` has this project's task files, `data_root` their data files.
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


@dataclass(frozen=True)
class ScoredItem:
    """`id` is task:index:digest of the item."""

    id: str
    score: float


@dataclass(frozen=True)
class ScoredTask:
    """Items in the order of the data set; `chat_template` is the SHA-256 of the template that prompts went through.
    `chance` is the mean score of guessing, where it is known.
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


@dataclass(frozen=True)
class Answer:
    """`added_bos`: prompts began with BOS; `requests` is how many the server answered."""

    lm_eval_version: str
    added_bos: bool
    requests: int
    tasks: tuple[ScoredTask, ...]
