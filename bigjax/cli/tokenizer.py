"""Trains the tokenizer of a config on its sources, or shows the one that the config names."""

from bigjax import config as config_lib
from bigjax.arguments import Arguments, Command, Flag
from bigjax.errors import UserError, cannot_write

COMMAND = Command(
    flags=(Flag("out", "where to write it, for data.tokenizer.path of a config", value="FOLDER"),),
    config=True,
    workdirs=0,
    keys=(
        "data.sources",
        "data.tokenizer",
        "data.valid_fraction",
        "data.test_fraction",
        "data.on_bad_utf8",
        "data.cache_dir",
        "init_from",
    ),
)


def run(arguments: Arguments) -> None:
    config, _ = arguments.config()
    config_lib.check_values(config)
    from bigjax import data
    from bigjax.data import tokenizers
    from bigjax.train import init_from

    init_from.fill(config)
    section = config.data.get("tokenizer")
    if section is None:
        raise UserError(f"data.name={config.data.name!r} has no tokenizer.")
    if "sources" in config.data:
        built = data.build_tokenizer(config.data, python_path=config.python_path)
    else:
        built = tokenizers.named(section, python_path=config.python_path)
    print(f"{config.data.tokenizer.kind} tokenizer of {built.vocab_size:,} tokens")
    for text in ("Hello world", "def attention(query, key, value):"):
        ids = built.encode_batch([text])[0].tolist()
        print(f"{text!r} -> {ids} -> {[built.decode([i]) for i in ids]}")
    if arguments.flags.out:
        try:
            built.save(arguments.flags.out)
        except OSError as e:
            raise cannot_write(f"--out={arguments.flags.out}", e, "Name another folder") from e
        print(f"Wrote {arguments.flags.out}")
