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
from dataclasses import asdict
from importlib.metadata import version

import qpack_worker
from chat_answers import Asking, ask
from lm_eval_job import Answer, Generated, Job, ScoredItem, ScoredTask

ANSWERS = "answers.jsonl"
UNGUESSED = ("exact_match", "right_call", "passes")
"""Metrics that nobody scores on by guessing, by how they begin."""

job = qpack_worker.load(Job)
offline = all(not task.name.startswith("lm_eval:") for task in job.tasks)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if offline:
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

qpack_worker.progress(0, 0, "loading lm-eval")

from lm_eval.api.model import LM  # noqa: E402  (the environment variables above have to be set first)
from lm_eval.evaluator import evaluate  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402


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
    """{name as wanted: {name: lm-eval task}}: one task, or those of a group by name."""
    manager = TaskManager(
        include_path=job.tasks_dir, include_defaults=not offline, metadata={"data_root": job.data_root}
    )
    found = {}
    for wanted in job.tasks:
        if wanted.load not in manager.all_tasks:
            qpack_worker.fail(
                f"{wanted.name} is unknown to this lm-eval", "Name a task or group as `lm-eval ls tasks` lists them."
            )
        leaves = dict(sorted(manager.load([wanted.load])["tasks"].items()))
        for task in leaves.values():
            if wanted.few_shot is not None:
                task.set_config(key="num_fewshot", value=wanted.few_shot)
            task.set_fewshot_seed(job.seed)
        found[wanted.name] = leaves
    return found


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


class Scores:
    """The scores of one task's items: the mean over rounds, each round an answer."""

    def __init__(self, wanted, name, task, chosen):
        self.wanted, self.name, self.task, self.chosen = wanted, name, task, chosen
        self.metric, self.filter = None, None
        self.samples, self.rounds = [], []

    def add(self, results):
        """One round's scores, in the order of the data set, checked against what was asked for and lm-eval's mean."""
        metric, _, wanted_filter = (self.wanted.metric or next(iter(self.task._metric_fn_list))).partition(",")
        samples = results["samples"][self.name]
        self.metric, self.filter = metric, wanted_filter or samples[0]["filter"]
        samples = [sample for sample in samples if sample["filter"] == self.filter]
        samples.sort(key=lambda sample: sample["doc_id"])
        if [sample["doc_id"] for sample in samples] != self.chosen:
            qpack_worker.fail(
                f"{self.wanted.name}: {len(self.chosen)} items of {self.name} were asked for, lm-eval scored "
                f"{len(samples)} of them (filter {self.filter})"
            )
        several = [isinstance(sample.get(metric), (list, tuple)) for sample in samples]
        scores = [self._score(sample, metric) for sample in samples]
        reported = results["results"][self.name].get(f"{metric},{self.filter}")
        mean = math.fsum(scores) / len(scores)
        if not any(several) and not math.isclose(mean, float(reported), rel_tol=0, abs_tol=1e-9):
            qpack_worker.fail(f"{self.name}: {metric} isn't the mean over items, so models can't be compared in pairs")
        self.samples = samples
        self.rounds.append(scores)

    def _score(self, sample, metric):
        """One item's score; of a list of scores (IFEval's instructions) its mean."""
        if metric not in sample:
            qpack_worker.fail(f"{self.name} has no metric {metric!r}; it has {', '.join(sample['metrics'])}")
        score = sample[metric]
        try:
            score = math.fsum(map(float, score)) / len(score) if isinstance(score, (list, tuple)) else float(score)
        except (TypeError, ValueError, ZeroDivisionError):
            score = math.nan
        if not math.isfinite(score):
            qpack_worker.fail(f"{self.name}: {metric} isn't a number per item, so models can't be compared in pairs")
        return score

    def means(self):
        """Each item's mean over the rounds."""
        return [math.fsum(scores) / len(scores) for scores in zip(*self.rounds, strict=True)]


def task_result(wanted, parts, template, lm):
    """One score: of a task, or of a group's tasks with all their items taken together."""
    items, chances, sizes = [], [], []
    for part in parts:
        own = wanted.name if len(parts) == 1 else f"lm_eval:{part.name}"
        for sample, score in zip(part.samples, part.means(), strict=True):
            generated = generated_of(lm, part.name, sample["doc_id"]) if wanted.generation else None
            items.append(ScoredItem(sample_id(own, sample["doc_id"], sample["doc"]), score, generated))
        chances.append(chance_of(part.task, part.metric, part.samples))
        sizes.append(len(part.samples))
    known = None not in chances
    examples = parts[0].task.config.num_fewshot or 0 if wanted.few_shot is None else wanted.few_shot
    return ScoredTask(
        task=wanted.name,
        version=str(parts[0].task.VERSION),
        metric=parts[0].metric if parts[0].filter == "none" or not wanted.metric else wanted.metric,
        few_shot=examples,
        limit=wanted.limit,
        seed=job.seed,
        mean=math.fsum(item.score for item in items) / len(items),
        chance=math.fsum(c * n for c, n in zip(chances, sizes, strict=True)) / sum(sizes) if known else None,
        samples=tuple(items),
        chat_template=template,
        tasks=len(parts),
    )


def generated_of(lm, name, index):
    """What is known of the answers to an item beside their scores."""
    answers = lm.answers[name, index]
    return Generated(
        tuple(each.tokens for each in answers),
        sum(each.truncated for each in answers),
        sum(each.looped for each in answers),
    )


def write_answers(file, wanted, parts, lm):
    """Every answer with its score, one JSON line per item and repeat, for people who look into a figure."""
    for part in parts:
        own = wanted.name if len(parts) == 1 else f"lm_eval:{part.name}"
        for at, sample in enumerate(part.samples):
            item = sample_id(own, sample["doc_id"], sample["doc"])
            for repeat, answer in enumerate(lm.answers[part.name, sample["doc_id"]]):
                line = {"item": item, "repeat": repeat, "score": part.rounds[repeat][at], **asdict(answer)}
                line["prompt"] = json.loads(sample["arguments"][0][0])[-1]["content"]
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def chance_of(task, metric, samples):
    """The mean score of guessing: one in the number of an item's choices; 0 of an answer that is generated and has to
    match; None where it isn't known.
    """
    if task.OUTPUT_TYPE == "multiple_choice" and metric in ("acc", "acc_norm", "acc_bytes"):
        # An item has one request for each choice.
        counts = [len(sample["filtered_resps"]) for sample in samples]
        return math.fsum(1 / count for count in counts) / len(counts) if min(counts) > 0 else None
    if task.OUTPUT_TYPE == "generate_until" and metric.startswith(UNGUESSED):
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


class Chat(LM):
    """lm-eval's model for tasks that are asked over /v1/chat/completions: the server applies the chat template.

    Every item is asked `repeats` times in one go; a round of lm-eval then scores one answer per item.
    """

    def __init__(self, generation):
        super().__init__()
        self.generation = generation
        self.tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
        self.answers, self.chosen = {}, {}
        self.round = self.done = 0
        if not self.tokenizer.chat_template:
            qpack_worker.fail(
                "a task is asked over /v1/chat/completions, and the model has no chat template",
                "Take tasks that aren't generated over chat.",
            )

    @property
    def tokenizer_name(self):
        """A part of lm-eval's cache keys, which nothing here uses."""
        return job.tokenizer.replace("/", "__")

    def chat_template(self, _chat_template=False):
        """The template's text."""
        template = self.tokenizer.chat_template
        return template if isinstance(template, str) else json.dumps(template, sort_keys=True)

    def apply_chat_template(self, chat_history, add_generation_prompt=True):  # noqa: ARG002
        """The messages as text; the server applies the template to them."""
        return json.dumps(chat_history, ensure_ascii=False)

    def loglikelihood(self, requests):
        """Choices are scored by likelihood, which a chat has none of."""
        qpack_worker.fail(
            f"{requests[0].task_name} scores choices by their likelihood, and a chat answers with text",
            "Leave `generate` out of the task, or take one whose answers are generated.",
        )

    loglikelihood_rolling = loglikelihood

    def generate_until(self, requests, disable_tqdm=False):  # noqa: ARG002
        """The answers of this round; the first round asks for those of all rounds."""
        keys = [self._key(each) for each in requests]
        new = {key: each for key, each in zip(keys, requests, strict=True) if key not in self.answers}
        if new:
            how = Asking(job.base_url, job.chat_concurrency, job.timeout_seconds, job.seed, self.generation.think_end)
            bodies = {key: self._body(each) for key, each in new.items()}
            stops = {key: each.args[1].get("until") or () for key, each in new.items()}
            try:
                self.answers.update(ask(how, bodies, stops, self.generation.repeats, _answered))
            except ValueError as error:
                qpack_worker.fail(str(error), "See the server's log.")
            self.done += len(bodies) * self.generation.repeats
        return [self.answers[key][self.round].answer for key in keys]

    def _key(self, request):
        """The task and the item's index in its data set. lm-eval counts the items that were chosen."""
        return request.task_name, self.chosen[request.task_name][request.doc_id]

    def _body(self, request):
        messages, arguments = json.loads(request.args[0]), self.generation.template
        most = self.generation.max_tokens or request.args[1].get("max_gen_toks") or 256
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **arguments)
        length = len(self.tokenizer(prompt, add_special_tokens=False).input_ids)
        # The job's limit leaves one token for lm-eval's own client.
        if length + most > job.max_length:
            qpack_worker.fail(
                f"{request.task_name}: a prompt of {length} tokens and an answer of {most} don't fit into "
                f"{job.max_length}: {prompt[:80]!r}...",
                "Lower generate.max_tokens, or serve with a larger max_model_len.",
            )
        if picture := (request.doc or {}).get("picture"):
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
            messages[-1]["content"] = [image, {"type": "text", "text": messages[-1]["content"]}]
        return {
            "model": job.model,
            "messages": messages,
            "max_tokens": most,
            "temperature": self.generation.temperature,
            "top_p": self.generation.top_p,
            **({"chat_template_kwargs": arguments} if arguments else {}),
        }


def _answered(done, total):
    qpack_worker.progress(done, total, "answers")


def template_digest(lm):
    """SHA-256 of the template that lm-eval renders with."""
    return hashlib.sha256(str(lm.chat_template(True)).encode()).hexdigest()


def run(_job, out):
    """Load, run, check, report. Tasks that are asked in different ways take a round each."""
    warning = LastWarning()
    logging.getLogger("lm_eval").addHandler(warning)
    tasks = load_tasks()
    found, added_bos, requests = {}, False, 0
    ways = []
    for wanted in job.tasks:
        if (wanted.chat, wanted.generation) not in ways:
            ways.append((wanted.chat, wanted.generation))
    with open(os.path.join(out, ANSWERS), "w", encoding="utf-8") as answers:
        for chat, generation in ways:
            now = [wanted for wanted in job.tasks if (wanted.chat, wanted.generation) == (chat, generation)]
            lm = Chat(generation) if generation else client(chat)
            parts = score(lm, now, tasks, chat or generation is not None, generation, warning)
            template = template_digest(lm) if chat or generation else None
            for wanted in now:
                found[wanted.name] = task_result(wanted, parts[wanted.name], template, lm)
                if generation:
                    write_answers(answers, wanted, parts[wanted.name], lm)
            added_bos = added_bos or (not generation and lm.add_bos_token)
            requests += lm.done
    return Answer(version("lm_eval"), added_bos, requests, tuple(found[wanted.name] for wanted in job.tasks))


def score(lm, now, tasks, chat, generation, warning):
    """{wanted name: its tasks' scores}, from one pass of lm-eval per repeat."""
    parts = {
        wanted.name: [
            Scores(
                wanted, name, task, choose(task, wanted.name if len(tasks[wanted.name]) == 1 else name, wanted.limit)
            )
            for name, task in tasks[wanted.name].items()
        ]
        for wanted in now
    }
    each = [part for some in parts.values() for part in some]
    mine, chosen = {part.name: part.task for part in each}, {part.name: part.chosen for part in each}
    more = {"system_instruction": generation.system, "fewshot_as_multiturn": True} if generation else {}
    lm.chosen = chosen
    for number in range(generation.repeats if generation else 1):
        lm.round = number
        try:
            results = evaluate(
                lm, {"tasks": mine, "groups": {}}, samples=chosen, bootstrap_iters=0, apply_chat_template=chat, **more
            )
        except Exception as error:
            logging.getLogger("lm_eval").exception("lm-eval stopped")
            qpack_worker.fail(warning.text or f"{type(error).__name__}: {error}", "See the server's log.")
        for part in each:
            part.add(results)
    return parts


if __name__ == "__main__":
    qpack_worker.main(run, Job)
