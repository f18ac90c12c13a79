"""Shows what the model writes after a prompt. Gives no metric."""

import dataclasses

from bigjax import modules
from bigjax.bounds import at_least
from bigjax.evals import Context
from bigjax.infer.generate import Generator, Options, continuation


@dataclasses.dataclass(frozen=True)
class Config:
    prompt: str = ""
    tokens: int = 64  # of what is drawn

    RANGES = {"tokens": at_least(1)}


def build(name: str, options: Config, context: Context):
    tokenizer = context.corpus.tokenizer
    how = Options(max_new=options.tokens, temperature=0.8, top_p=0.95, eos_id=tokenizer.eos_id)
    prompt = [tokenizer.bos_id, *tokenizer.encode_batch([options.prompt])[0].tolist()]
    family = modules.of(context.config, "model")

    def evaluate(params, extras, step: int) -> dict[str, float]:
        del extras
        generator = Generator(family, context.task.model_config, params)
        new = generator([prompt], how, seed=context.config.seed)[0]
        text = (options.prompt + continuation(tokenizer, prompt, new)).replace("\n", "\n    ")
        context.log(f"{name} after step {step}:\n    {text}")
        return {}

    evaluate.metrics = ()
    return evaluate
