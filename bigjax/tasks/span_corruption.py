"""T5's pre-training: predict hidden spans of a text (https://arxiv.org/abs/1910.10683)."""

import dataclasses
import functools

from bigjax.bounds import Range, at_least
from bigjax.data import spans
from bigjax.errors import UserError
from bigjax.tasks import Task, _encoder_decoder, data_module
from bigjax.tasks._encoder_decoder import text_task

DATA, EVALUATION = "text", "loss"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config(_encoder_decoder.Config):
    noise: float = 0.15  # share of the tokens that are hidden
    mean_span: float = 3.0  # tokens per hidden span
    # published: a text begins with kept tokens and ends with hidden ones; uniform: all tokens are
    # hidden equally often
    edges: str = "published"
    dynamic: bool = True  # new masks in each epoch

    RANGES = {
        **_encoder_decoder.Config.RANGES,
        "noise": Range(0, 1, open_low=True, open_high=True),
        "mean_span": at_least(1),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.edges not in spans.EDGES:
            raise UserError(f"task.edges is {self.edges!r}; allowed: {', '.join(spans.EDGES)}.")


def build(config, options: Config) -> Task:
    """Batches: see data.spans.SpanBatches."""
    source = data_module(config, "load_text", "text")
    if config.data.packing:
        raise UserError(
            "data.packing=True keeps attention within a document, which task.name="
            "'span_corruption' does not: its windows run over documents. Set data.packing=False."
        )
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(spans.Options)}
    own = spans.Options(**fields)
    sizes = spans.sizes(config.data.seq_len, own)

    def load_data(log, tokenizer, splits):
        del splits  # a store has all of them
        make = functools.partial(spans.SpanBatches, options=own)
        corpus = source.load_text(config.data, log, tokenizer, make, config.python_path)
        log(
            f"data: windows of {sizes.window} tokens, of which {sizes.noise} are hidden in "
            f"{sizes.spans} spans: targets of up to {sizes.target_len} tokens"
        )
        return corpus

    of_target = "target length (by task.noise and task.mean_span)"
    lengths = {"data.seq_len": config.data.seq_len, of_target: sizes.target_len}
    return text_task(config, options, lengths, load_data, packing=False)
