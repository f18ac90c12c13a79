"""Logs a continuation of a prompt by the model, or its answer in a conversation. Has no metrics."""

import dataclasses

from bigjax import modules
from bigjax.bounds import at_least
from bigjax.errors import UserError
from bigjax.evals import Context
from bigjax.infer.generate import Generator, Options
from bigjax.infer.texts import of_ids, prompt_ids


@dataclasses.dataclass(frozen=True)
class Config:
    prompt: str = ""
    max_new_tokens: int = 64

    RANGES = {"max_new_tokens": at_least(1)}


def build(name: str, options: Config, context: Context):
    tokenizer = context.corpus.tokenizer
    sampling = Options(options.max_new_tokens, 0.8, top_p=0.95, eos_id=tokenizer.eos_id)
    template = getattr(context.corpus, "template", None)
    if template:
        sampling = dataclasses.replace(sampling, end_ids=template.end_ids)
    family = modules.of(context.config, "model")
    if not hasattr(family, "decoder"):
        raise UserError(
            f"evals.{name}.kind='sample' needs a model that generates, such as model.name='gpt'; "
            f"model.name is {context.config.model.name!r}."
        )
    task = context.task
    decoder = task.decoder(family.decoder(task.model_config))
    if template:
        ids, shown = [context.corpus.prompt_ids(options.prompt)], f"{options.prompt}\n"
    else:
        ids = prompt_ids(tokenizer, [options.prompt], decoder)
        shown = options.prompt * decoder.continues

    def evaluate(params, extras, step: int) -> dict[str, float]:
        generator = Generator(decoder, task.variables(params, extras, context.frozen))
        (new,) = of_ids(generator, tokenizer, ids, sampling, seed=context.config.seed)
        new = new.strip() if template else new
        text = (shown + new).replace("\n", "\n    ")
        context.log(f"{name} after step {step}:\n    {text}")
        return {}

    evaluate.metrics = ()
    return evaluate
