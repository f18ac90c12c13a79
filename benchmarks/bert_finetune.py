"""The effect of pre-training: test accuracy of fine-tuning from a run and from scratch.

    python benchmarks/bert_finetune.py --pretrained=RUN [--json] [--seeds 3] [--config.KEY=VALUE]

Both sides train configs/bert/finetune.py with the same model, tokenizer, data, steps and seeds;
"ours" starts from the parameters of RUN (a work folder or a Hugging Face folder), "theirs" from
new ones. By default the labels are the libraries that docstrings belong to. Beside them: logistic
regression on the counts of words and pairs of words, which takes seconds.

The unit is test accuracy after the last step, averaged over the seeds. This is no benchmark of
speed, so it does not need an idle machine.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile

from bigjax import cpu

cpu.restart_with_huge_pages()  # as bigjax/main.py does, before jax is imported
cpu.keep_freed_memory()

from absl import logging  # noqa: E402
from sklearn.feature_extraction.text import CountVectorizer  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402

from bigjax.arguments import Arguments  # noqa: E402
from bigjax.data.rows import read_parts  # noqa: E402
from bigjax.tasks.classify import Classify  # noqa: E402
from bigjax.train import init_from  # noqa: E402
from bigjax.train import run as run_lib  # noqa: E402

CONFIG = "configs/bert/finetune.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrained", required=True, help="a run, or a Hugging Face folder")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--seeds", type=int, default=3)
    args, overrides = parser.parse_known_args()
    logging.set_verbosity(logging.FATAL)
    config, _ = Arguments(
        [f"--config={CONFIG}", f"--config.init_from={args.pretrained}", *overrides]
    ).config()
    with config.unlocked():
        init_from.fill(config)
        config.log.tensorboard = False
    words = bag_of_words(config)
    print(f"bag of words     {words:.4f}  (logistic regression)", flush=True)
    accuracies = {"ours": [], "theirs": []}
    for seed in range(args.seeds):
        for side, source in (("ours", args.pretrained), ("theirs", "")):
            accuracies[side].append(accuracy(config, seed, source))
            print(
                f"seed {seed}  {'pre-trained' if source else 'from scratch':<13}"
                f"{accuracies[side][-1]:.4f}",
                flush=True,
            )
    ours, theirs = (statistics.mean(accuracies[side]) for side in ("ours", "theirs"))
    print(f"pre-trained {ours:.4f}, from scratch {theirs:.4f}, bag of words {words:.4f}")
    if args.json:
        print(
            json.dumps(
                {
                    "name": "bert_finetune",
                    "ours": ours,
                    "theirs": theirs,
                    "ratio": ours / theirs,
                    "unit": "test accuracy",
                    "bag_of_words": words,
                    "seeds": accuracies,
                }
            )
        )


def accuracy(config, seed: int, source: str) -> float:
    """Test accuracy of one run."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.seed, config.init_from = seed, source
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            run_lib.train(config.lock(), folder)
        with open(f"{folder}/metrics.jsonl", encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
    values = [line["eval/test/accuracy"] for line in lines if "eval/test/accuracy" in line]
    return values[-1]


def bag_of_words(config) -> float:
    """Test accuracy of logistic regression on counts."""
    rows = read_parts(config.data, Classify())
    text = lambda part: [row["text"] + " " + row.get("pair", "") for row in rows[part]]
    labels = lambda part: [row["label"] for row in rows[part]]
    model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=2000))
    return model.fit(text("train"), labels("train")).score(text("test"), labels("test"))


if __name__ == "__main__":
    main()
