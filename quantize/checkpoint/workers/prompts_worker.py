"""Renders and tokenizes prompts with two checkpoints' tokenizers. Runs in the transformers environment.

Job: checkpoint, source (folders). Returns what each makes of the same conversations and texts, where that differs.
"""

import qpack_worker
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
    """(text, ids) of a conversation as a server would send it, or the reason why there is none."""
    if not tokenizer.chat_template:
        return None, "there is no chat template"
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        # A template may refuse a conversation (no system role): what counts is that both do.
        return None, f"{type(error).__name__}: {error}"
    return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])


def plain(tokenizer, text):
    """(text, ids) of a text with the special tokens that the tokenizer adds."""
    return text, list(tokenizer(text)["input_ids"])


def work(job):
    """Compare, prompt by prompt."""
    ours, theirs = (
        AutoTokenizer.from_pretrained(job[which], local_files_only=True, trust_remote_code=False)
        for which in ("checkpoint", "source")
    )
    prompts = [(rendered, "conversation", c) for c in CONVERSATIONS] + [(plain, "text", t) for t in TEXTS]
    differences = []
    for number, (make, kind, prompt) in enumerate(prompts, 1):
        (text, ids), (wanted_text, wanted_ids) = make(ours, prompt), make(theirs, prompt)
        if (text, ids) != (wanted_text, wanted_ids):
            differences.append({"number": number, "kind": kind, "text": text, "ids": ids,
                                "wanted_text": wanted_text, "wanted_ids": wanted_ids})  # fmt: skip
    return {"compared": len(prompts), "differences": differences}


if __name__ == "__main__":
    qpack_worker.main(work)
