"""Generates text with a trained model."""

import dataclasses

from bigjax.arguments import MODEL, SETTLED, STEP, Arguments, Command, Flag
from bigjax.errors import UserError

COMMAND = Command(
    flags=(
        Flag("prompt", "the text to continue; may be repeated", []),
        Flag("number", "number of samples per prompt", 1),
        Flag("max_tokens", "per sample; by default fewer if model.max_len requires it", 128),
        Flag("temperature", "0 always takes the most likely token", 0.8),
        Flag("top_k", "only the k most likely tokens; 0 = all", 0),
        Flag("top_p", "only the most likely tokens that together have this probability", 0.95),
        Flag("stop", "a text that ends a sample; may be repeated", []),
        Flag("seed", "of the samples", 0),
        Flag("beam", "above 0: beam search for this number of texts, instead of samples", 0),
        STEP,
    ),
    keys=MODEL,
    unused=SETTLED,
)


def run(arguments: Arguments) -> None:
    from bigjax import bounds, data, modules
    from bigjax.infer.generate import Options
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    f = arguments.flags
    if f.number < 1:
        raise UserError(f"--number is {f.number}; it must be at least 1.")
    if "" in f.stop:
        raise UserError("--stop is empty; give the text that ends a sample.")
    if f.beam < 0:
        raise UserError(f"--beam is {f.beam}; it must be at least 0 (no search).")
    Options(f.max_tokens, f.temperature, f.top_k, f.top_p)  # raises UserError for invalid values
    bounds.check_seed(f.seed)
    for name in ("top_k", "top_p", "seed"):
        if not f.temperature and f[name].present:
            raise UserError(
                f"--{name} would change nothing: --temperature=0 takes the most likely "
                "token. Leave one of the two out."
            )
    for name in ("temperature", "top_k", "top_p", "seed", "number", "stop"):
        if f.beam and f[name].present:
            raise UserError(
                f"--{name} is only for samples, not for --beam. Leave one of the two out."
            )
    config = arguments.config_of_run()
    family = modules.of(config, "model")
    if not hasattr(family, "decoder"):
        raise UserError(
            f"Only decoders generate text, such as model.name='gpt'; {arguments.workdir} has "
            f"model.name={config.model.name!r}."
        )
    folder = workdir_lib.existing(arguments.workdir) / "tokenizer"
    tokenizer = data.load_tokenizer(folder, config.python_path)
    loaded = load_lib.load(arguments.workdir, config, arguments.step, batch_size=None)
    _write(f, tokenizer, *_decoder(family, loaded, arguments.overrides))


def _decoder(family, loaded, overrides: list[str]):
    """The decoder and its variables; on a CPU in float32 unless the dtype is overridden. A CPU
    multiplies only float32, and would convert weights of bfloat16 for every few tokens."""
    import jax

    from bigjax.train import state

    c, variables = loaded.task.model_config, loaded.variables
    chosen = any(a.startswith("--config.model.dtype=") for a in overrides)
    if loaded.mesh.devices.flat[0].platform == "cpu" and hasattr(c, "dtype") and not chosen:
        c = dataclasses.replace(c, dtype="float32")
        variables = jax.jit(state.cast, static_argnums=1)(variables, "float32")
    return family.decoder(c), variables


def _write(f, tokenizer, decoder, variables) -> None:
    from bigjax.infer import texts
    from bigjax.infer.generate import Generator, Options

    generator = Generator(decoder, variables)
    prompts = [p for p in (f.prompt or [""]) for _ in range(f.number)]
    room = max(decoder.max_len - generator.taken(texts.prompt_ids(tokenizer, prompts)), 1)
    length = f.max_tokens if f["max_tokens"].present else min(f.max_tokens, room)
    options = Options(length, f.temperature, f.top_k, f.top_p, tokenizer.eos_id)
    shown = prompts if decoder.continues else [""] * len(prompts)
    if f.beam:
        results = texts.search(generator, tokenizer, prompts, options, f.beam)
        for i, candidates in enumerate(results):
            for text, score in candidates:
                print(f"--- {i + 1} of {len(prompts)}, {score:.3f} per token\n{shown[i]}{text}")
        return
    more = dict(seed=f.seed, stop=f.stop)
    if len(prompts) == 1:  # print pieces as they are generated
        text = shown[0]  # printed with the first piece, since the request may be refused
        for _, piece in texts.stream(generator, tokenizer, prompts, options, **more):
            print(text + piece, end="", flush=True)
            text = ""
        print(text)
        return
    for i, text in enumerate(texts.texts(generator, tokenizer, prompts, options, **more)):
        print(f"--- {i + 1} of {len(prompts)}\n{shown[i]}{text}")
