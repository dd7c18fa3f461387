"""Checks a running server as clients use it: with the openai SDK and instructor, in their own environment.

The server must have no other clients meanwhile: some checks read its counters.
"""

import base64
import concurrent.futures
import os
import re
import struct
import time
import zlib
from typing import Literal

import instructor
import openai
import pydantic
import qpack_worker
import streams
import under_load
from canary_job import Answer, Check, Job
from instructor.core import IncompleteOutputException, InstructorRetryException

try:
    import httpx2 as httpx  # what openai 3 of the lock asks with
except ImportError:  # an own interpreter with an older openai
    import httpx

PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "Once upon a time there was",
    "The largest planet of the solar system is",
    "Two plus three is",
    "She opened the door and",
    "The opposite of cold is",
    "A recipe for bread begins with",
)
POEM = "Write two lines about the sea. Plain words only, no JSON and no braces."
SLOW = 60.0
LONGEST_PROMPT = 120.0


# Several times the tokens of the longest answer that `Tide` allows. Nothing else limits the answer: a client's
# request with a JSON schema has no more than this either.
ENOUGH = 64
# vLLM's words where it finds no placeholder for a picture in the prompt (`multimodal/processing/processor.py`).
UNPLACED = "Failed to apply prompt replacement"
# What models mark their thinking with.
THINKING = ("<think>", "</think>", "[THINK]", "[/THINK]", "<|channel|>", "<seed:think>", "<|thinking|>")


class Failed(Exception):
    """A check failed; the message says why."""


class Skipped(Exception):
    """A check doesn't apply; the message says why."""


class Tide(pydantic.BaseModel):
    """The schema to answer in: nothing that the model would produce by itself."""

    model_config = pydantic.ConfigDict(extra="forbid")

    tide: Literal["ebb", "flood"]
    boats: Literal[7, 8, 9]


class Place(pydantic.BaseModel):
    """A schema with text of the model's own."""

    model_config = pydantic.ConfigDict(extra="forbid")

    city: str = pydantic.Field(max_length=16)
    country: str = pydantic.Field(max_length=16)


WHOLE = [Tide(tide=tide, boats=boats).model_dump_json() for tide in ("ebb", "flood") for boats in (7, 8, 9)]


def unlike(text, cut, why):
    """What to raise for an answer that isn't of the schema. One that follows it and was cut broke no schema, but a
    client can't use it either: the model wrote blanks until its tokens were spent.
    """
    if cut and any(answer.startswith("".join(text.split())) for answer in WHOLE):
        return Failed(
            f"the answer follows the schema, but {ENOUGH} tokens went into blanks; set structured-outputs-config: "
            "{backend: xgrammar, disable_any_whitespace: true}"
        )
    return Failed(f"the answer isn't of the schema: {why}")


def brief(error):
    """An error on one line: the server's own message, where it sent one, and nothing of pydantic's link."""
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(text or error).split()).partition(" For further information")[0][:200]


class Asker:
    """A server, and the requests that the checks send."""

    def __init__(self, job):
        self.job, self.model, self.chat = job, job.model, job.chat
        self.free = None
        self.connect()

    def connect(self):
        """A client with connections of its own: a server closes one on which it failed."""
        key = os.environ.get("VLLM_API_KEY") or "none"
        self.client = openai.OpenAI(base_url=self.job.base_url + "/v1", api_key=key, max_retries=0, timeout=300)

    def complete(self, prompt, **more):
        """A greedy completion."""
        settings = {"model": self.model, "prompt": prompt, "max_tokens": 24, "temperature": 0, **more}
        return self.client.completions.create(**settings)

    def say(self, text, **more):
        """A greedy answer to one message."""
        messages = [{"role": "user", "content": text}]
        settings = {"model": self.model, "messages": messages, "max_tokens": 24, "temperature": 0, **more}
        return self.client.chat.completions.create(**settings)

    def unbound(self):
        """Raise Failed if the prompt produces JSON of the schema without being asked to."""
        if self.free is None:
            said = self.say(POEM).choices[0].message.content if self.chat else self.complete(POEM).choices[0].text
            self.free = said or ""
        try:
            Tide.model_validate_json(self.free)
        except ValueError:
            return
        raise Failed("the prompt gives such JSON without a schema too, so the check proves nothing")

    def ids(self, count):
        """`count` token ids of plain text."""
        body = {"model": self.model, "prompt": "The sea is wide and the boats are small. " * (count // 4 + 1)}
        found = self.client._client.post(self.job.base_url + "/tokenize", json=body, headers=self.client.auth_headers)
        found.raise_for_status()
        tokens = found.json()["tokens"]
        while len(tokens) < count:
            tokens = tokens + tokens
        return tokens[:count]

    def alone(self):
        """Raise Skipped if the server has other clients: its counters would include theirs."""
        asked = time.monotonic()
        while self.scrape()["vllm:num_requests_running"]:  # the last check's request may still be counted as running
            if time.monotonic() - asked > 5:
                raise Skipped("the server has other clients")
            time.sleep(0.1)

    def scrape(self):
        """Every sample of /metrics, summed over its labels."""
        text = self.client._client.get(self.job.base_url + "/metrics").text
        found = {}
        for line in text.splitlines():
            sample = re.match(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})? (\S+)$", line)
            if sample:
                found[sample[1]] = found.get(sample[1], 0.0) + float(sample[2])
        return found

    def cache_setting(self, name):
        """A setting of the KV cache, as /metrics has it; "" where it doesn't."""
        text = self.client._client.get(self.job.base_url + "/metrics").text
        found = re.search(rf'^vllm:cache_config_info\{{.*\b{name}="([^"]*)"', text, re.MULTILINE)
        return found[1] if found else ""

    def block_size(self):
        """Tokens in a block of the KV cache; 0 where the server doesn't say."""
        told = self.cache_setting("block_size")
        return int(told) if told.isdigit() else 0

    def up(self):
        """Whether the server takes connections."""
        self.connect()
        try:
            self.client._client.get(self.job.base_url + "/metrics")
        except httpx.HTTPError:
            return False
        return True


def models(ask):
    """The server lists the model."""
    named = [entry.id for entry in ask.client.models.list()]
    if ask.model not in named:
        raise Failed(f"it lists {', '.join(named)}, not {ask.model}")
    return f"names {ask.model}"


def stream(ask):
    """A stream has the same text as the whole answer."""
    text, pieces = "Write one sentence about the sea.", []

    def whole():
        if ask.chat:
            return ask.say(text).choices[0].message.content or ""
        return ask.complete(text).choices[0].text

    def streamed():
        if ask.chat:
            pieces[:] = [c.choices[0].delta.content or "" for c in ask.say(text, stream=True) if c.choices]
        else:
            pieces[:] = [c.choices[0].text for c in ask.complete(text, stream=True) if c.choices]
        return "".join(pieces)

    same, answer, stream = streams.agree(whole, streamed)
    if same and stream:
        return f"{len(pieces)} pieces, the same text"
    raise Failed(f"streamed {stream[:60]!r}, whole {answer[:60]!r}")


def stop(ask):
    """An answer ends before its stop string."""
    free = ask.complete("One two three four five six seven", max_tokens=24).choices[0].text
    mark = free[len(free) // 2 :][:3]
    if not mark.strip():
        mark = free.strip()[-3:]
    if not mark:
        raise Failed(f"without a stop string it answers {free!r}")
    held = ask.complete("One two three four five six seven", max_tokens=24, stop=[mark]).choices[0]
    if held.finish_reason != "stop" or mark in held.text:
        raise Failed(f"stop={mark!r} gave {held.text!r} ({held.finish_reason})")
    return f"stopped at {mark!r}"


def limit(ask):
    """A prompt that fills the context is answered; one token more is a clean 400."""
    longest = ask.job.max_model_len
    try:
        ask.complete(ask.ids(longest), max_tokens=1)
    except openai.BadRequestError as refused:
        if not str(refused.message):
            raise Failed("the 400 has no message") from refused
    else:
        raise Failed(f"{longest} + 1 tokens were taken, above max_model_len {longest}")
    # A long context on a slow device takes hours: one piece of it (with a prefix of its own) shows how many.
    piece = min(256, longest // 2)
    started = time.monotonic()
    ask.complete(ask.ids(piece)[::-1], max_tokens=1)
    expected = (time.monotonic() - started) * longest / piece
    if expected > LONGEST_PROMPT:
        raise Skipped(f"{longest} + 1 tokens get a 400; {longest - 1} would take about {expected:.0f} s to read here")
    full = ask.complete(ask.ids(longest - 1), max_tokens=1)
    if full.usage.prompt_tokens != longest - 1:
        raise Failed(f"{full.usage.prompt_tokens} tokens were read of {longest - 1}")
    return f"{longest - 1} + 1 tokens fit, {longest} + 1 get a 400"


def structured(ask):
    """A JSON schema is followed, with the openai SDK, for a prompt that gives something else without it."""
    ask.unbound()
    if ask.chat:
        messages = [{"role": "user", "content": POEM}]
        try:
            made = ask.client.chat.completions.parse(
                model=ask.model, messages=messages, response_format=Tide, temperature=0, max_tokens=ENOUGH
            )
        except openai.LengthFinishReasonError as error:
            raise unlike(error.completion.choices[0].message.content or "", True, brief(error)) from error
        except ValueError as error:
            raise unlike("", False, brief(error)) from error
        return made.choices[0].message.parsed.model_dump_json()
    form = {"type": "json_schema", "json_schema": {"name": "tide", "schema": Tide.model_json_schema(), "strict": True}}
    made = ask.complete(POEM, max_tokens=ENOUGH, extra_body={"response_format": form}).choices[0]
    try:
        return Tide.model_validate_json(made.text).model_dump_json()
    except ValueError as error:
        cut = made.finish_reason == "length"
        raise unlike(made.text, cut, f"{made.text[:80]!r} ({made.finish_reason})") from error


def structured_by_instructor(ask):
    """A JSON schema is followed, with instructor, at the first attempt."""
    if not ask.chat:
        raise Skipped("instructor asks in chat, and the model has no chat template")
    ask.unbound()
    client = instructor.from_openai(ask.client, mode=instructor.Mode.JSON_SCHEMA)
    try:
        made = client.chat.completions.create(
            model=ask.model,
            messages=[{"role": "user", "content": POEM}],
            response_model=Tide,
            max_retries=1,
            temperature=0,
            max_tokens=ENOUGH,
        )
    except IncompleteOutputException as error:
        choice = error.last_completion and error.last_completion.choices[0]
        raise unlike((choice and choice.message.content) or "", choice is not None, brief(error)) from error
    except InstructorRetryException as error:
        raise unlike("", False, brief(error.failed_attempts[-1].exception)) from error
    return made.model_dump_json()


def structured_under_load(ask):
    """A JSON schema is followed by greedy answers beside sampled ones."""
    # With drafts, vLLM 0.32 takes tokens in such a batch that the grammar refuses, and answers 500.
    form = {
        "type": "json_schema",
        "json_schema": {"name": "place", "schema": Place.model_json_schema(), "strict": True},
    }

    def bound(number):
        extra = {"max_tokens": ENOUGH, "extra_body": {"response_format": form}}
        question = f"{number}: what is a tide?"
        if ask.chat:
            choice = ask.say(question, **extra).choices[0]
            text = choice.message.content or ""
        else:
            choice = ask.complete(question, **extra).choices[0]
            text = choice.text
        try:
            Place.model_validate_json(text)
        except ValueError:
            return f"{text[:60]!r} ({choice.finish_reason})"
        return ""

    def sampled(number):
        ask.complete(PROMPTS[number], max_tokens=ENOUGH, temperature=0.7, seed=number, extra_body={"ignore_eos": True})
        return ""

    def told(one, number):
        try:
            return one(number)
        except openai.APIStatusError as error:
            return f"HTTP {error.status_code} ({brief(error)})"

    asked = [(one, number) for number in range(4) for one in (bound, sampled)]
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda each: told(*each), asked))
    wrong = [why for (one, _), why in zip(asked, found, strict=True) if why and one is bound]
    if wrong:
        drafts = " Drafts are on: ask for JSON where they are off." if ask.job.drafting else ""
        raise Failed(f"{len(wrong)} of 4 answers with a schema failed beside sampled ones: {wrong[0]}.{drafts}")
    if any(found):
        raise Failed(f"a sampled answer failed: {next(filter(None, found))}")
    return "4 of 4, beside 4 that were sampled"


def tools(ask):
    """A requested tool is called with arguments of its schema."""
    if not ask.job.tools:
        raise Skipped("the manifest declares no tools")
    # vLLM 0.32 enforces the schema of arguments only for a tool with `strict`.
    function = {"name": "tell_tide", "description": "Tells the tide.", "strict": True}
    function["parameters"] = Tide.model_json_schema()
    choice = ask.say(
        "What is the tide?",
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "tell_tide"}},
        max_tokens=ENOUGH,
    ).choices[0]
    calls = choice.message.tool_calls or []
    if [call.function.name for call in calls] != ["tell_tide"]:
        raise Failed(f"it calls {[call.function.name for call in calls]}")
    try:
        Tide.model_validate_json(calls[0].function.arguments)
    except ValueError as error:
        raise Failed(f"called with {calls[0].function.arguments[:80]!r}") from error
    return calls[0].function.arguments


def png(red, green, blue, side=64):
    """A picture of one colour, as a data URL."""
    rows = (b"\0" + bytes((red, green, blue)) * side) * side

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def picture(ask):
    """A picture in a message is read and answered."""
    if not ask.chat:
        raise Skipped("pictures are sent in chat, and the model has no chat template")
    text = "Which colour is this?"
    plain = ask.say(text, max_tokens=8).usage.prompt_tokens
    content = [{"type": "image_url", "image_url": {"url": png(200, 30, 30)}}, {"type": "text", "text": text}]
    try:
        answer = ask.say(content, max_tokens=8)
    except openai.BadRequestError as refused:
        if ask.job.images:
            raise Failed(f"the model reads images, and the server refuses one: {brief(refused)}") from refused
        raise Skipped(f"the server takes none: {brief(refused)}") from refused
    except openai.InternalServerError as error:
        if UNPLACED in str(error):
            raise Failed(
                "the chat template gives a picture no place in the prompt: it has to write the model's placeholder "
                f"where a part of a message is an image ({brief(error)})"
            ) from error
        raise Failed(f"the server failed on a picture, its log says why: {brief(error)}") from error
    read = answer.usage.prompt_tokens - plain
    if read < 1:
        raise Failed(f"the picture added no token to the {plain} of the text")
    if not answer.usage.completion_tokens:
        raise Failed("the answer is empty")
    return f"{read} tokens for the picture, {answer.usage.completion_tokens} in the answer"


def thinking(ask):
    """Thinking comes apart from the answer."""
    if not ask.job.thinking:
        raise Skipped("the manifest has no reasoning-parser")
    # Templates that don't know the switch ignore it.
    more = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}}
    message = ask.say("Is 91 a prime number?", max_tokens=256, **more).choices[0].message
    thought = getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None) or ""
    left = [mark for mark in THINKING if mark in (message.content or "")]
    if left:
        raise Failed(f"the answer still has {left[0]}: another reasoning-parser is the model's")
    if not thought.strip():
        raise Skipped("it answered without thinking")
    return f"{len(thought)} characters of thinking, {len(message.content or '')} of answer"


def logprobs(ask):
    """Log-probabilities come with the answer, and the greedy token is the most probable one."""
    many = min(3, ask.job.logprobs)
    if many < 1:
        raise Skipped("the manifest gives none")
    found = ask.complete("The capital of France is", max_tokens=4, logprobs=many).choices[0].logprobs
    if found is None:
        raise Failed("no log-probabilities came")
    for token, mine, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        if mine > 1e-6 or mine < max(top.values()) - 1e-3:
            raise Failed(f"{token!r} has {mine}, the best at its position {max(top.values())}")
    return f"{len(found.tokens)} tokens"


def concurrent_load(ask):
    """Sixteen requests at once are all answered."""
    prompts = [f"Number {number} is" for number in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda prompt: ask.complete(prompt, max_tokens=16), prompts))
    empty = sum(answer.usage.completion_tokens == 0 for answer in done)
    if empty:
        raise Failed(f"{empty} of 16 answers are empty")
    return "16 of 16 answered"


def same_under_load(ask):
    """Greedy answers at sixteen requests at once are those of one request alone, up to ties of two tokens."""
    many = min(20, ask.job.logprobs)
    if many < 2:
        raise Skipped("the manifest gives no log-probabilities to judge by")
    more = {"max_tokens": 16, "logprobs": many, "extra_body": {"ignore_eos": True}}

    def answer(prompt):
        return ask.complete(prompt, **more).choices[0]

    alone = {prompt: answer(prompt) for prompt in PROMPTS}
    # Each twice, and none beside its twin.
    with concurrent.futures.ThreadPoolExecutor(2 * len(PROMPTS)) as pool:
        loaded = list(zip(PROMPTS * 2, pool.map(answer, PROMPTS * 2), strict=True))
    for prompt, given in loaded:
        mine = alone[prompt]
        found = under_load.departure(mine.logprobs.tokens, mine.logprobs.top_logprobs, given.logprobs.tokens)
        if found is not None:
            at, gap = found
            raise Failed(
                f"{prompt!r} gets {given.text[:40]!r} among {len(loaded)} requests and {mine.text[:40]!r} alone: token "
                f"{at + 1} is {gap:.1f} nats less probable"
            )
    same = sum(given.text == alone[prompt].text for prompt, given in loaded)
    rest = ", the rest part at ties" if same < len(loaded) else ""
    return f"{same} of {len(loaded)} answers are the same to the letter{rest}"


def cancel(ask):
    """A client that disconnects during a stream frees its slot, and generation stops."""
    ask.alone()
    tokens = min(256, ask.job.max_model_len - 16)
    before = ask.scrape()["vllm:generation_tokens_total"]
    running = ask.complete("The sea", max_tokens=tokens, stream=True, extra_body={"ignore_eos": True})
    for _, _chunk in zip(range(3), running, strict=False):
        pass
    running.close()
    left, first = time.monotonic(), True
    while time.monotonic() - left < SLOW:
        there = ask.scrape()
        made = there["vllm:generation_tokens_total"] - before
        if there["vllm:num_requests_running"] == 0:
            if made >= tokens and first:
                raise Skipped(f"all {tokens} tokens were generated before the client could disconnect")
            if made >= tokens:
                raise Failed(f"all {tokens} tokens were generated for a client that had disconnected")
            return f"free after {time.monotonic() - left:.1f} s and {made:.0f} of {tokens} tokens"
        first = False
        time.sleep(0.1)
    raise Failed(f"still running {SLOW:.0f} s after the client disconnected")


def prefix_cache(ask):
    """A second request with the same prefix is served from the cache."""
    if not ask.job.prefix_caching:
        raise Skipped("the manifest turns it off")
    if ask.cache_setting("enable_prefix_caching") == "False":
        # For some models it does so by itself: hybrids, and latent attention on CPUs.
        raise Skipped("the server turned it off for this model")
    ask.alone()
    # The cache keeps whole blocks. Hybrids have large ones, because a block of attention is as large as one state.
    block = ask.block_size()
    size = min(max(600, block + 8), ask.job.max_model_len - 8)
    if size <= block:
        raise Skipped(f"a block of the cache has {block} tokens, and the longest prompt {size}")
    prompt = ask.ids(size)
    ask.complete(prompt, max_tokens=1)
    before = ask.scrape()["vllm:prefix_cache_hits_total"]
    ask.complete(prompt, max_tokens=1)
    found = ask.scrape()["vllm:prefix_cache_hits_total"] - before
    if found < 1:
        raise Failed(f"none of {size} tokens came from the cache")
    return f"{found:.0f} of {size} tokens from the cache"


def acceptance(ask):
    """Drafted tokens are accepted at the manifest's rate, for repetitive text, which is easy to draft."""
    if not ask.job.drafting:
        raise Skipped("speculative decoding is off")
    ask.alone()
    before = ask.scrape()
    ask.complete("red green blue red green blue red green blue red green blue red", max_tokens=64)
    after = ask.scrape()
    drafted, accepted = (
        after.get(name, 0.0) - before.get(name, 0.0)
        for name in (f"vllm:spec_decode_num_{what}_tokens_total" for what in ("draft", "accepted"))
    )
    floor = ask.job.acceptance_floor
    if not drafted:
        raise Failed("no token was drafted")
    if not accepted or accepted / drafted < floor:
        least = f", and the floor is {floor:.0%}" if floor else ""
        raise Failed(f"{accepted:.0f} of {drafted:.0f} drafted tokens were accepted ({accepted / drafted:.0%}){least}")
    return f"{accepted:.0f} of {drafted:.0f} drafted tokens accepted ({accepted / drafted:.0%})"


def metrics(ask):
    """The server has every metric that the manifest lists."""
    if not ask.job.metrics:
        raise Skipped("no manifest lists them")
    there = ask.scrape()
    missing = [name for name in ask.job.metrics if name not in there]
    if missing:
        raise Failed(f"missing: {', '.join(missing)}")
    return f"{len(ask.job.metrics)} present"


CHECKS = (
    models,
    stream,
    stop,
    limit,
    structured,
    structured_by_instructor,
    structured_under_load,
    tools,
    picture,
    thinking,
    logprobs,
    concurrent_load,
    same_under_load,
    cancel,
    prefix_cache,
    acceptance,
    metrics,
)


def prove(job, _out):
    """Run every check, whatever the others find."""
    ask = Asker(job)
    found = []
    checks = [check for check in CHECKS if not job.only or check.__name__ in job.only]
    for number, check in enumerate(checks, 1):
        ask.connect()
        try:
            outcome, why = "pass", check(ask)
        except Skipped as skipped:
            outcome, why = "skip", str(skipped)
        except Failed as failed:
            outcome, why = "fail", str(failed)
        except openai.APIConnectionError as error:
            if not ask.up():
                qpack_worker.fail(f"the server at {job.base_url} can't be reached: {error}", "Is it up?")
            outcome, why = "fail", "the server closed the connection without an answer; its log says why"
        except Exception as error:
            outcome, why = "fail", f"{type(error).__name__}: {error}"[:300]
        found.append(Check(check.__name__, check.__doc__.splitlines()[0], outcome, why))
        qpack_worker.progress(number, len(checks), "checks")
    return Answer(tuple(found), {"openai": openai.__version__, "instructor": instructor.__version__})


if __name__ == "__main__":
    qpack_worker.main(prove, Job)
