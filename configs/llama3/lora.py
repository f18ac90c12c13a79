"""A chat model by LoRA from Llama 3.1 (:8b, :70b, and :qlora, that is 70b in 4 bits), for a slice.

The base is the folder that is published on Hugging Face, with its tokenizer and chat template; the
conversations are a file of your own (docs/chat.md):

    bigjax plan --config=configs/llama3/lora.py:70b --topology=v5e:4x8
    bigjax train --config=configs/llama3/lora.py:8b --workdir=runs/lora --config.peft.base=llama \\
        --config.data.tokenizer.path=llama --config.data.train=chats.jsonl

Planned, not run: on v5e:4x8 a step of :70b needs 14.65 of 15.75 GiB and is expected to take 11.4 s,
with an MFU of 54%. `:tiny` trains the adapter, the embedding and the output layer of an untrained
base for 20 steps: 3.52 nats per learned token on validation from 5.58, 31 seconds of CPU time.
"""

from bigjax import config

SIZES = {  # preset, learning rate, rows, dtype of the base
    "8b": ("llama3.1-8b", 2e-4, 32, "bfloat16"),
    "70b": ("llama3.1-70b", 1e-4, 32, "bfloat16"),
    "qlora": ("llama3.1-70b", 1e-4, 32, "nf4"),
}


def get_config(variant=""):
    c = config.new_config()
    size = "8b" if variant in ("", "tiny") else variant
    preset, learning_rate, rows, base_dtype = config.variants(size, **SIZES, tiny=None)

    c.model = dict(
        name="gpt",
        preset=preset,
        max_len=4096,
        dtype="bfloat16",
        remat="full",
    )

    c.peft = dict(
        name="lora",
        base="set peft.base",  # the Hugging Face folder
        base_dtype=base_dtype,
        rank=16,
        alpha=32.0,
        targets="stack/.*/(query|key|value|out|gate|up|down)$",  # all dense layers
        also="",
    )

    c.task = dict(name="sft")

    c.data = dict(
        name="conversations",
        train="set data.train",
        tokenizer=dict(
            kind="tokenizer_json",
            path="set data.tokenizer.path",  # the same folder
            vocab_size=128256,
        ),
        seq_len=4096,
        packing=True,
        truncate=True,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = learning_rate
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 20
    c.optim.final_fraction = 0.1
    c.optim.weight_decay = 0.0
    c.optim.clip_norm = 1.0

    c.train.batch_size = rows
    c.train.steps = 1000

    c.mesh.data = 1
    c.mesh.fsdp = -1

    c.checkpoint.every = 100
    c.log.every = 10
    c.evals = dict(valid=dict(kind="loss", every=100, batches=20))

    if variant == "tiny":
        config.laptop_size(c, dict(kind="bytes"), vocab_size=264, n_kv_heads=2, max_len=128)
        c.peft.update(base="random", base_dtype="float32", rank=4, also="^(embed|head)/")
        c.optim.learning_rate = 3e-3
        questions = dict(train="docstrings:questions", chat_template="plain")
        c.data = dict(name="conversations", tokenizer=dict(kind="bytes"), **questions)
        c.data.update(seq_len=128, truncate=True)
    return c
