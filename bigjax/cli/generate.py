"""Writes text with a trained model."""

from bigjax.arguments import MODEL, SETTLED, STEP, Arguments, Command, Flag
from bigjax.errors import UserError

COMMAND = Command(
    flags=(
        Flag("prompt", "to continue; may be given several times", []),
        Flag("number", "samples of each prompt", 1),
        Flag("max_tokens", "of a sample; fewer by default where model.max_len has less room", 128),
        Flag("temperature", "0 takes the likeliest token", 0.8),
        Flag("top_k", "only the k likeliest tokens; 0 = all", 0),
        Flag("top_p", "only the likeliest tokens that together have this probability", 0.95),
        Flag("stop", "ends a sample; may be given several times", []),
        Flag("seed", "of what is drawn", 0),
        STEP,
    ),
    keys=MODEL,
    unused=SETTLED,
)


def run(arguments: Arguments) -> None:
    from bigjax import bounds, data, modules
    from bigjax.infer.generate import Generator, Options, continuation
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    f = arguments.flags
    if f.number < 1:
        raise UserError(f"--number is {f.number}; it must be at least 1.")
    if "" in f.stop:
        raise UserError("--stop is empty; give the text that ends a sample.")
    Options(f.max_tokens, f.temperature, f.top_k, f.top_p)  # refuses what cannot be
    bounds.check_seed(f.seed)
    for name in ("top_k", "top_p", "seed"):
        if not f.temperature and f[name].present:
            raise UserError(
                f"--{name} would change nothing: --temperature=0 takes the likeliest token. "
                "Leave one of the two out."
            )
    config = arguments.config_of_run()
    tokenizer = data.load_tokenizer(workdir_lib.existing(arguments.workdir) / "tokenizer")
    loaded = load_lib.load(arguments.workdir, config, arguments.step, batch_size=None)
    generator = Generator(modules.of(config, "model"), loaded.task.model_config, loaded.params)
    prompts = [p for p in (f.prompt or [""]) for _ in range(f.number)]
    ids = [[tokenizer.bos_id, *t.tolist()] for t in tokenizer.encode_batch(prompts)]
    room = max(generator.config.max_len - max(map(len, ids)), 1)
    length = f.max_tokens if f["max_tokens"].present else min(f.max_tokens, room)
    options = Options(length, f.temperature, f.top_k, f.top_p, tokenizer.eos_id)
    for i, (prompt, new) in enumerate(zip(prompts, generator(ids, options, f.seed))):
        text = continuation(tokenizer, ids[i], new)
        for stop in f.stop:
            text = text.split(stop)[0]
        if len(prompts) > 1:
            print(f"--- {i + 1} of {len(prompts)}")
        print(prompt + text)
