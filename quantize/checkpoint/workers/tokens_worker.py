"""Turns texts into rows of token ids. Runs in the transformers environment."""

import hashlib
import json
import os
import random
from typing import Union

import qpack_worker
from tokens_job import RowsAnswer, RowsJob, WindowsAnswer, WindowsJob
from transformers import AutoTokenizer


def read_texts(path, field):
    """Every row's text, in file order. Chat messages stay a list."""
    with open(path, encoding="utf-8") as file:
        if not path.endswith((".jsonl", ".json")):
            return [line.rstrip("\n") for line in file if line.strip()]
        rows = []
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                qpack_worker.fail(f"{os.path.basename(path)}:{number}: not JSON: {error}", kind="bad_input")
            if field not in row:
                qpack_worker.fail(
                    f"{os.path.basename(path)}:{number}: has no '{field}'",
                    f"Its keys: {', '.join(sorted(row))}. Set `field` to one of them.",
                    kind="bad_input",
                )
            rows.append(row[field])
        return rows


def digest_of(text):
    """SHA-256 of the text, or of the messages as JSON."""
    whole = text if isinstance(text, str) else json.dumps(text, sort_keys=True)
    return hashlib.sha256(whole.encode("utf-8")).hexdigest()


def plain(text):
    """The text, or the text of all messages."""
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)


def encode(tokenizer, text, chat_template):
    """Token ids, and whether a second BOS was removed.

    A rendered chat template often starts with BOS already; a tokenizer that adds one would make it two.
    """
    if chat_template:
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    else:
        text = plain(text)
    ids = tokenizer(text, add_special_tokens=True)["input_ids"]
    bos = tokenizer.bos_token_id
    # <|im_start|> is BOS in some tokenizers and precedes every message: only one that the tokenizer itself added
    # is a double.
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) > len(bare) and bos is not None and ids[:2] == [bos, bos]:
        return ids[1:], True
    return ids, False


def rows(job, tokenizer):
    """Calibration rows: shuffled by the seed, deduplicated, cut at max_length."""
    texts = read_texts(job.texts, job.field)
    order = list(range(len(texts)))
    random.Random(job.seed).shuffle(order)
    taken, digests, lengths, seen = [], [], [], set()
    held_out = set(job.held_out)
    kinds = ("read", "cut", "dropped_short", "dropped_duplicate", "dropped_held_out", "double_bos_removed")
    count = dict.fromkeys(kinds, 0)
    for index in order:
        if len(taken) == job.samples:
            break
        count["read"] += 1
        digest = digest_of(texts[index])
        if digest in seen:
            count["dropped_duplicate"] += 1
            continue
        seen.add(digest)
        if digest in held_out:
            count["dropped_held_out"] += 1
            continue
        ids, doubled = encode(tokenizer, texts[index], job.chat_template)
        if len(ids) < job.min_length:
            count["dropped_short"] += 1
            continue
        count["double_bos_removed"] += doubled
        count["cut"] += len(ids) > job.max_length
        ids = ids[: job.max_length]
        taken.append(ids)
        digests.append(digest)
        lengths.append(len(ids))
        qpack_worker.progress(len(taken), job.samples, "rows")
    if len(taken) < job.samples and not job.count:
        qpack_worker.fail(
            f"the calibration set is too small: {job.samples} rows asked for, {len(taken)} usable of {len(texts)}"
            f" ({count['dropped_short']} short, {count['dropped_duplicate']} duplicate,"
            f" {count['dropped_held_out']} held out)",
            "Lower calibration.samples or calibration.min_length, or use a larger file.",
            kind="bad_input",
        )
    return taken, RowsAnswer(tokens=sum(lengths), row_digests=tuple(digests), lengths=tuple(lengths), **count)


def windows(job, tokenizer):
    """Held-out windows of exactly window_tokens: one of each text that is long enough, in file order; then, as far as
    these are too few, of the shorter texts joined in file order. No text is used twice.
    """
    taken, used, short, seen = [], [], [], set()

    def take(ids, digests):
        taken.append(ids[: job.window_tokens])
        used.extend(digests)
        qpack_worker.progress(len(taken), job.windows, "windows")

    for text in read_texts(job.texts, job.field):
        if len(taken) == job.windows:
            break
        digest = digest_of(text)
        if digest in seen:
            continue
        seen.add(digest)
        ids, _ = encode(tokenizer, text, False)
        if len(ids) >= job.window_tokens:
            take(ids, [digest])
        elif ids:
            short.append((plain(text), digest, len(ids)))
    held, length = [], 0
    for text, digest, tokens in short:
        if len(taken) == job.windows:
            break
        held.append((text, digest))
        length += tokens
        if length >= job.window_tokens:
            # Joined texts have a few tokens fewer: one start token, and merges at the joints.
            ids, _ = encode(tokenizer, "\n\n".join(text for text, _ in held), False)
            if len(ids) >= job.window_tokens:
                take(ids, [digest for _, digest in held])
                held, length = [], 0
    if len(taken) < job.windows and not job.count:
        qpack_worker.fail(
            f"held-out text is too short: {job.windows} windows of {job.window_tokens} tokens asked for,"
            f" {len(taken)} found in {len(seen)} different texts",
            "Lower evaluate.perplexity.windows or window_tokens, or use a larger file.",
            kind="bad_input",
        )
    return taken, WindowsAnswer(len(taken), tuple(used))


def work(job, out):
    """Write tokens.jsonl; the answer counts the texts by what was done with them."""
    tokenizer = AutoTokenizer.from_pretrained(
        job.checkpoint, local_files_only=True, trust_remote_code=job.trust_remote_code
    )
    if isinstance(job, RowsJob) and job.chat_template and not tokenizer.chat_template:
        qpack_worker.fail(
            "calibration.chat_template is on, but the model has no chat template",
            "Set it to false, or use an instruct model.",
            kind="bad_input",
        )
    taken, answer = (rows if isinstance(job, RowsJob) else windows)(job, tokenizer)
    with open(os.path.join(out, "tokens.jsonl"), "w", encoding="utf-8") as file:
        for ids in taken:
            file.write(json.dumps({"input_ids": ids}) + "\n")
    return answer


if __name__ == "__main__":
    qpack_worker.main(work, Union[RowsJob, WindowsJob])
