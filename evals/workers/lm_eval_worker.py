"""Runs lm-eval tasks against a server's /v1/completions and returns every sample's score.

Runs inside the environment of lm-eval: standard library, lm-eval and what it brings.

lm-eval makes prompts and requests, scores, and computes metrics. Added here: progress, and an error wherever
lm-eval would go on with a cut prompt, a lost answer or a number that isn't finite.
"""

import hashlib
import json
import logging
import math
import os
import random
from importlib.metadata import version

import qpack_worker
from lm_eval_job import Answer, Job, ScoredItem, ScoredTask

job = qpack_worker.load(Job)
offline = all(not task.name.startswith("lm_eval:") for task in job.tasks)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if offline:
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

qpack_worker.progress(0, 0, "loading lm-eval")

from lm_eval.evaluator import evaluate  # noqa: E402  (the environment variables above have to be set first)
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402


class LastWarning(logging.Handler):
    """Keeps the server's message: lm-eval logs the body of an error response and raises without it."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record):
        """Keep the message of a failed request."""
        text = record.getMessage()
        if "API request failed" in text:
            self.text = text.removesuffix(". Retrying...")[:2000]


class Completions(LocalCompletionsAPI):
    """lm-eval's client of a completions server, with checked and counted answers."""

    done = 0
    total = 0

    def batch_loglikelihood_requests(self, chunks):
        """Refuse a prompt that lm-eval would cut from the left: another prompt is another task."""
        chunks = list(chunks)
        for chunk in chunks:
            for (context, _continuation), context_ids, continuation_ids in chunk:
                length = len(context_ids) + len(continuation_ids)
                if length > self.max_length:
                    qpack_worker.fail(
                        f"a prompt of {length} tokens doesn't fit into {self.max_length + 1}: {context[:80]!r}...",
                        "Use fewer few-shot examples, or serve with a larger max_model_len.",
                    )
        return super().batch_loglikelihood_requests(chunks)

    def generate_until(self, requests, *args, **kwargs):
        """Refuse a prompt that leaves no room for its answer, for the same reason."""
        for request in requests:
            context, options = request.args
            length = len(self.tokenizer(context, add_special_tokens=self.add_bos_token).input_ids)
            length += options.get("max_gen_toks", self._max_gen_toks)
            if length > self.max_length:
                qpack_worker.fail(
                    f"a prompt and its answer of {length} tokens don't fit into {self.max_length}: {context[:80]!r}...",
                    "Use fewer few-shot examples, or serve with a larger max_model_len.",
                )
        return super().generate_until(requests, *args, **kwargs)

    async def get_batched_requests(self, requests, *args, **kwargs):
        """Count the requests."""
        self.total += len(requests)
        return await super().get_batched_requests(requests, *args, **kwargs)

    async def amodel_call(self, session, sem, messages, **kwargs):
        """One HTTP request of up to batch_size prompts."""
        answers = await super().amodel_call(session, sem, messages, **kwargs)
        if len(answers) != len(messages):
            raise RuntimeError(f"{len(messages)} prompts were sent, {len(answers)} answers received")
        for answer in answers:
            if isinstance(answer, tuple) and not math.isfinite(answer[0]):
                raise RuntimeError(f"the server gave a log-likelihood of {answer[0]}")
        self.done += len(messages)
        qpack_worker.progress(self.done, self.total, "requests")
        return answers


def adds_bos(tokenizer):
    """Whether this tokenizer starts texts with BOS: the model was trained so, and is scored so.

    lm-eval's client leaves it out unless told (`add_bos_token`). Token ids are sent, so the server adds nothing to
    them.
    """
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer("a").input_ids
    return ids[:1] == [tokenizer.bos_token_id] and ids[-1:] != [tokenizer.eos_token_id]


def load_tasks():
    """{name: lm-eval task} in the order of the job."""
    manager = TaskManager(
        include_path=job.tasks_dir, include_defaults=not offline, metadata={"data_root": job.data_root}
    )
    tasks = {}
    for wanted in job.tasks:
        if wanted.load not in manager.all_subtasks:
            kind = "a group of tasks" if wanted.load in manager.all_tasks else "unknown to this lm-eval"
            qpack_worker.fail(f"{wanted.name} is {kind}", "Name single tasks, as `lm-eval ls subtasks` lists them.")
        task = manager.load([wanted.load])["tasks"][wanted.load]
        task.set_config(key="num_fewshot", value=wanted.few_shot)
        task.set_fewshot_seed(job.seed)
        tasks[wanted.load] = task
    return tasks


def choose(task, name, limit):
    """Indices of the items to score, ascending: the job's part of a seeded draw without replacement that depends on
    nothing but seed, task and size.
    """
    size = len(task.eval_docs)
    count = size if limit is None else min(limit, size)
    drawn = random.Random(f"{job.seed}:{name}").sample(range(size), count)
    begin, end = (math.ceil(share * count) for share in job.part)
    return sorted(drawn[begin:end])


def sample_id(name, index, doc):
    """task:index:digest of the document, so that a changed data file can't be paired with an old result."""
    digest = hashlib.sha256(json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()
    return f"{name}:{index}:{digest[:12]}"


def task_result(wanted, task, results, chosen, template):
    """One task's samples, in the order of the data set, checked against what was asked for and lm-eval's own mean."""
    name = wanted.load
    metric = wanted.metric or next(iter(task._metric_fn_list))
    samples = results["samples"][name]
    samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    samples.sort(key=lambda sample: sample["doc_id"])
    if [sample["doc_id"] for sample in samples] != chosen:
        qpack_worker.fail(f"{wanted.name}: {len(chosen)} items were asked for, lm-eval scored {len(samples)} of them")
    scores = []
    for sample in samples:
        if metric not in sample:
            qpack_worker.fail(f"{wanted.name} has no metric {metric!r}; it has {', '.join(sample['metrics'])}")
        score = sample[metric]
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            try:
                score = float(score)
            except (TypeError, ValueError):
                qpack_worker.fail(
                    f"{wanted.name}: {metric} isn't a number per item, so models can't be compared in pairs"
                )
        scores.append(float(score))
    mean = math.fsum(scores) / len(scores)
    reported = results["results"][name][f"{metric},{samples[0]['filter']}"]
    if not math.isclose(mean, float(reported), rel_tol=0, abs_tol=1e-9):
        qpack_worker.fail(f"{wanted.name}: {metric} isn't the mean over items, so models can't be compared in pairs")
    return ScoredTask(
        task=wanted.name,
        version=str(task.VERSION),
        metric=metric,
        few_shot=wanted.few_shot,
        limit=wanted.limit,
        seed=job.seed,
        mean=mean,
        chance=chance_of(task, metric, samples),
        samples=tuple(
            ScoredItem(sample_id(wanted.name, sample["doc_id"], sample["doc"]), score)
            for sample, score in zip(samples, scores, strict=True)
        ),
        chat_template=template,
    )


def chance_of(task, metric, samples):
    """The mean score of guessing: one in the number of an item's choices; 0 of an answer that is generated and has to
    match; None where it isn't known.
    """
    if task.OUTPUT_TYPE == "multiple_choice" and metric in ("acc", "acc_norm", "acc_bytes"):
        # An item has one request for each choice.
        counts = [len(sample["filtered_resps"]) for sample in samples]
        return math.fsum(1 / count for count in counts) / len(counts) if min(counts) > 0 else None
    if task.OUTPUT_TYPE == "generate_until" and metric.startswith("exact_match"):
        return 0.0
    return None


def client(chat):
    """lm-eval's client. A chat template writes its own BOS, so none is added in front of it."""
    lm = Completions(
        base_url=job.base_url.rstrip("/") + "/v1/completions",
        model=job.model,
        tokenizer=job.tokenizer,
        tokenizer_backend="huggingface",
        tokenized_requests=True,
        max_length=job.max_length,
        num_concurrent=max(2, job.concurrency),  # with 1 lm-eval skips the hooks above
        batch_size=job.batch_size,
        max_retries=2,
        timeout=job.timeout_seconds,
        seed=job.seed,
    )
    lm.add_bos_token = adds_bos(lm.tokenizer) and not chat
    if chat and not lm.tokenizer.chat_template:
        qpack_worker.fail("a task uses the chat template, but the tokenizer has none", "Remove `chat` from the task.")
    return lm


def template_digest(lm):
    """SHA-256 of the template that lm-eval renders with."""
    return hashlib.sha256(str(lm.chat_template(True)).encode()).hexdigest()


def run(_job, _out):
    """Load, run, check, report: tasks with and without the chat template in two rounds."""
    warning = LastWarning()
    logging.getLogger("lm_eval").addHandler(warning)
    tasks = load_tasks()
    found, added_bos, requests = {}, False, 0
    for chat in sorted({wanted.chat for wanted in job.tasks}):
        wanted_now = [wanted for wanted in job.tasks if wanted.chat == chat]
        lm = client(chat)
        mine = {wanted.load: tasks[wanted.load] for wanted in wanted_now}
        chosen = {w.load: choose(tasks[w.load], w.name, w.limit) for w in wanted_now}
        try:
            results = evaluate(
                lm, {"tasks": mine, "groups": {}}, samples=chosen, bootstrap_iters=0, apply_chat_template=chat
            )
        except Exception as error:
            logging.getLogger("lm_eval").exception("lm-eval stopped")
            qpack_worker.fail(warning.text or f"{type(error).__name__}: {error}", "See the server's log.")
        for wanted in wanted_now:
            name = wanted.load
            template = template_digest(lm) if chat else None
            found[name] = task_result(wanted, tasks[name], results, chosen[name], template)
        added_bos, requests = added_bos or lm.add_bos_token, requests + lm.done
    return Answer(version("lm_eval"), added_bos, requests, tuple(found[wanted.load] for wanted in job.tasks))


if __name__ == "__main__":
    qpack_worker.main(run, Job)
