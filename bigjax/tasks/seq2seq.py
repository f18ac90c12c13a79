"""Predict a target from a source: translation, summaries, and other tasks as text to text."""

from bigjax.data.store import SPLITS
from bigjax.tasks import Task, data_module
from bigjax.tasks._encoder_decoder import Config as Config
from bigjax.tasks._encoder_decoder import text_task

DATA, EVALUATION = "text_to_text", "loss"  # in a config that is generated for this task


def build(config, options: Config) -> Task:
    """Batches: see data.text_to_text.PairBatches.

    With scheduled sampling a first pass with the true inputs gives the predictions, at all
    positions at once (https://arxiv.org/abs/1906.04331), by which a share of the inputs is replaced
    for the pass that has the loss.
    """
    source = data_module(config, "load_pairs", "text_to_text")

    def load_data(log, tokenizer, splits):
        return source.load_pairs(
            config.data,
            tokenizer=tokenizer,
            log=log,
            names=splits or SPLITS,
            python_path=config.python_path,
        )

    d = config.data
    lengths = {"data.seq_len": d.seq_len, "data.target_len": d.target_len}
    return text_task(config, options, lengths, load_data, packing=True)
