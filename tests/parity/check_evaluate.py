"""Checks `bigjax evaluate` against transformers, and freezes its numbers for the tests.

    python tests/parity/check_evaluate.py [--write]

Needs PyTorch and transformers. Small Llamas of random weights, with tokenizers that put a bos
before a text and that do not, score choices, with and without examples before them, and whole
texts, by transformers' logits and tokenizer alone, in the definitions of lm-evaluation-harness:
context and continuation are encoded together, rows that are too long lose their beginning.
--write: evaluate.npz, with the files of both models, the task files and transformers' numbers;
test_evaluate.py compares bigjax with them. Last run with torch 2.15.0, transformers 5.24.0.
"""

import json
import math
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers as hf

from tests import published_tokenizers

FROZEN = pathlib.Path(__file__).parent / "evaluate.npz"
FAMILIES = ("llama3", "qwen")  # with and without a bos before a text
MAX_LEN = 48
ROWS = [
    {"q": "The quick fox,", "a": ["1 times", "isn't lazy", "中文"], "y": 1},
    {"q": "def f(x):\n       ", "a": ["return 3", "  return"], "y": 0},
    {"q": "", "a": ["The", "lazy dogs"], "y": 1},
    {"q": "The naïve dogs, 12 times; isn't it? " * 4, "a": ["yes", "สวัสดี", "no"], "y": 2},
    {"q": "trailing \n\n", "a": ["fox", "dogs"], "y": 0},
]
SHARED = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": "rows.jsonl"},
    "test_split": "train",
}
CHOICES = {
    **SHARED,
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "a",
    "doc_to_target": "y",
}
TASKS = {
    "choices": CHOICES,
    "examples": {**CHOICES, "num_fewshot": 1, "fewshot_config": {"sampler": "first_n"}},
    "rolling": {
        **SHARED,
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{q}}{{a[0]}} {{q}}",
    },
}


class Theirs:
    def __init__(self, folder: pathlib.Path) -> None:
        self.model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = hf.PreTrainedTokenizerFast.from_pretrained(folder)
        first = self.tokenizer.bos_token_id
        self.first = self.tokenizer.eos_token_id if first is None else first

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        ids = (context + continuation)[-MAX_LEN - 1 :]
        with torch.no_grad():
            logits = self.model(torch.tensor([ids[:-1]])).logits[0].double()
        n = len(continuation)
        log_p = torch.log_softmax(logits, -1)[-n:]
        targets = torch.tensor(continuation)
        total = log_p[torch.arange(n), targets].sum()
        return float(total), bool((log_p.argmax(-1) == targets).all())

    def choice(self, context: str, continuation: str) -> tuple[float, bool]:
        text = context.rstrip()
        continuation = context[len(text) :] + continuation
        encode = lambda x: self.tokenizer(x).input_ids
        if not text:
            own = self.tokenizer(continuation, add_special_tokens=False).input_ids
            return self.score([self.first], own)
        n = len(encode(text))
        whole = encode(text + continuation)
        return self.score(whole[:n], whole[n:])

    def rolling(self, text: str) -> float:
        """Each token once, in windows whose last one reaches back as far as it can."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        total, at = 0.0, 0
        while at < len(ids):
            end = min(at + MAX_LEN, len(ids))
            before = ids[max(0, end - MAX_LEN - 1) : at] if at else [self.first]
            total += self.score(before, ids[at:end])[0]
            at = end
        return total


def expected(theirs: Theirs) -> dict[str, np.ndarray]:
    out: dict[str, list] = {}
    for name in ("choices", "examples"):
        for i, row in enumerate(ROWS):
            context = row["q"]
            if name == "examples":
                one = ROWS[1] if i == 0 else ROWS[0]
                context = f"{one['q']} {one['a'][one['y']]}\n\n{context}"
            found = [theirs.choice(context, f" {text}") for text in row["a"]]
            log_p = np.array([x for x, _ in found])
            lengths = np.array([len(text) for text in row["a"]])
            out.setdefault(f"{name}/log_p", []).extend(log_p)
            out.setdefault(f"{name}/greedy", []).extend(g for _, g in found)
            out.setdefault(f"{name}/acc", []).append(log_p.argmax() == row["y"])
            out.setdefault(f"{name}/acc_norm", []).append((log_p / lengths).argmax() == row["y"])
    documents = [f"{row['q']}{row['a'][0]} {row['q']}" for row in ROWS]
    out["rolling/log_p"] = [theirs.rolling(text) for text in documents]
    nats, n_bytes = -sum(out["rolling/log_p"]), sum(len(x.encode()) for x in documents)
    out["rolling/bits_per_byte"] = [nats / n_bytes / math.log(2)]
    return {key: np.array(values, np.float64) for key, values in out.items()}


def save_model(family: str, folder: pathlib.Path) -> None:
    published_tokenizers.write(family, folder)
    tokenizer = hf.PreTrainedTokenizerFast.from_pretrained(folder)
    torch.manual_seed(0)
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=MAX_LEN, tie_word_embeddings=True,
        initializer_range=0.3, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **small,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)


def main() -> None:
    frozen: dict[str, np.ndarray] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            save_model(family, folder)
            numbers = expected(Theirs(folder))
            frozen |= {f"{family}/{key}": value for key, value in numbers.items()}
            for path in sorted(folder.iterdir()):
                content = np.frombuffer(path.read_bytes(), np.uint8)
                frozen[f"file/{family}/{path.name}"] = content
        means = {k: float(v.mean()) for k, v in numbers.items()}
        print(family, json.dumps(means))
    texts = {"rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS)}
    texts |= {f"{name}.json": json.dumps({"task": name, **task}) for name, task in TASKS.items()}
    for name, text in texts.items():
        frozen[f"file/{name}"] = np.frombuffer(text.encode(), np.uint8)
    if "--write" in sys.argv:
        np.savez_compressed(FROZEN, **frozen)
        print(f"Wrote {FROZEN}: {FROZEN.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
