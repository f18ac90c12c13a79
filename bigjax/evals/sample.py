"""Shows what the model writes after a prompt. Gives no metric."""

from bigjax import models
from bigjax.evals.context import Context
from bigjax.infer.generate import Generator, Options, continuation


def build(name: str, entry, context: Context):
    """evals.NAME = evaluation('sample', prompt=, tokens=)."""
    tokenizer = context.corpus.tokenizer
    options = Options(max_new=entry.tokens, temperature=0.8, top_p=0.95, eos_id=tokenizer.eos_id)
    prompt = [tokenizer.bos_id, *tokenizer.encode_batch([entry.prompt])[0].tolist()]
    family = models.module(context.config.model.name)

    def evaluate(params, extras, step: int) -> dict[str, float]:
        del extras
        generator = Generator(family, context.task.model_config, params)
        new = generator([prompt], options, seed=context.config.seed)[0]
        text = (entry.prompt + continuation(tokenizer, prompt, new)).replace("\n", "\n    ")
        context.log(f"{name} after step {step}:\n    {text}")
        return {}

    return evaluate
