"""A chat model by LoRA: a pretrained decoder answers 'What does NAME do?', from docstrings.

The base is a run's work folder or a Hugging Face folder, by default that of
configs/gpt/docstrings.py:

    bigjax train --config=configs/gpt/docstrings.py --workdir=runs/docstrings
    bigjax train --config=configs/sft/lora.py --workdir=runs/lora

It takes two minutes on two CPU cores: after 800 steps eval/valid/loss is 3.26 nats per learned
token, from 4.62. The base is so small that its embedding is trained too. Your own conversations,
with an open model and its own chat template:

    bigjax train --config=configs/sft/lora.py --workdir=runs/lora --config.peft.base=llama3 \\
        --config.data.train=chats.jsonl --config.data.chat_template="" --config.peft.also="" \\
        --config.model.dtype=bfloat16 --config.peft.base_dtype=bfloat16 \\
        --config.data.seq_len=2048 --config.optim.learning_rate=2e-4

`:tiny`, 20 steps over an untrained base: 6.36 nats from 7.64, in 36 seconds of CPU time.
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()

    c.model = dict(name="gpt", preset="init_from")  # of peft.base
    c.peft = dict(
        name="lora",
        base="runs/docstrings",
        rank=32,
        alpha=64.0,
        targets="stack/.*/(query|key|value|out|gate|up|down)$",  # all dense layers
        also="^embed/",  # trained in full; '' for an open model
    )

    c.task = dict(name="sft")

    c.data = dict(
        name="conversations",
        train="docstrings:questions",
        chat_template="plain",
        tokenizer=dict(kind="init_from"),
        seq_len=128,
        truncate=True,
        valid_fraction=0.02,
        test_fraction=0.02,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = 5e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 50
    c.optim.final_fraction = 0.1
    c.optim.weight_decay = 0.0

    c.train.steps = 800
    c.train.batch_size = 16

    c.checkpoint.every = 400
    c.log.every = 25
    c.evals = dict(
        valid=dict(kind="loss", every=400),
        test=dict(
            kind="generation", split="test", metrics=("rouge",), max_new_tokens=32, every=800
        ),
        sample=dict(kind="sample", every=400, prompt="What does json.dumps do?", max_new_tokens=32),
    )

    tiny = config.variants(variant, tiny=True)
    if tiny:  # over an untrained base
        c.model = dict(name="gpt", vocab_size=2048, max_len=128, d_model=64, n_layers=2, n_heads=2)
        c.model.update(position="rotary", norm="rmsnorm", activation="swiglu", bias=False)
        c.peft.update(base="random", rank=16)
        c.data.tokenizer = dict(kind="sentencepiece", vocab_size=2048)
        c.train.steps = 20
        c.optim.learning_rate = 1e-2
        c.optim.warmup_steps = 5
        c.checkpoint.every = 10
        c.evals.valid.update(every=10, batches=2)
        c.evals.test.update(every=20, examples=8, max_new_tokens=8)
        c.evals.sample.update(every=20, max_new_tokens=16)
    return c
