"""Renders and tokenizes prompts with two checkpoints' tokenizers. Runs in the transformers environment."""

import qpack_worker
from prompts_job import Answer, Difference, Job, Rendered
from transformers import AutoTokenizer

CONVERSATIONS = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "2 + 2 = ?"}],
    [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello. How can I help?"},
        {"role": "user", "content": "Écris « été » en grec, puis 你好 🙂\n\tand `code`."},
    ],
)
TEXTS = ("The quick brown fox.", "  leading spaces, 12345.678, naïve café — 日本語\n\n\tTabs\r\nand lines ")


def rendered(tokenizer, conversation):
    """A conversation as a server renders it, or why it can't be rendered."""
    if not tokenizer.chat_template:
        return Rendered(None, refused="there is no chat template")
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        # A template may refuse a conversation (no system role); then both have to.
        return Rendered(None, refused=f"{type(error).__name__}: {error}")
    return Rendered(text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))


def plain(tokenizer, text):
    """A text with the special tokens that the tokenizer adds."""
    return Rendered(text, tuple(tokenizer(text)["input_ids"]))


def work(job, _out):
    """Compare, prompt by prompt."""
    ours, theirs = (
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for folder in (job.checkpoint, job.source)
    )
    prompts = [(rendered, "conversation", c) for c in CONVERSATIONS] + [(plain, "text", t) for t in TEXTS]
    differences = []
    for make, kind, prompt in prompts:
        found, wanted = make(ours, prompt), make(theirs, prompt)
        if found != wanted:
            differences.append(Difference(kind, found, wanted))
    return Answer(len(prompts), tuple(differences))


if __name__ == "__main__":
    qpack_worker.main(work, Job)
