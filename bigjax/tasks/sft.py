"""Learn the answers of an assistant in conversations: supervised fine-tuning."""

import dataclasses

from bigjax.data.store import SPLITS
from bigjax.tasks import Task, causal_lm, data_module
from bigjax.tasks._chat import resolve as resolve

DATA, EVALUATION = "conversations", "loss"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config(causal_lm.Config):
    # The content of the file data.chat_template; a run fills it in, so that it holds all of itself
    chat_template: str = ""


def build(config, options: Config) -> Task:
    """Batches: see data.conversations.ChatBatches. The loss is that of causal_lm on the tokens that
    are learned; each of them counts the same, whatever row, conversation or micro-batch it is in.
    """
    source = data_module(config, "load_conversations", "conversations")

    def load_data(log=print, tokenizer=None, splits=None):
        return source.load_conversations(
            config.data,
            tokenizer=tokenizer,
            log=log,
            names=splits or SPLITS,
            python_path=config.python_path,
            template=options.chat_template,
        )

    return causal_lm.decoder_task(config, options, load_data, counts_bytes=False)
