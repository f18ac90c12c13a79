"""SeqGAN's oracle experiment with the schedule of the paper's code.

For an accelerator. Measured on the full schedule: nothing; the published NLL_oracle is 8.736.
`:tiny` with 100 words instead of 5,000: NLL_oracle 6.12 after 6 rounds, 97 seconds of CPU time.

There are two differences. A pre-training round of the discriminator always has new negatives, where
the paper's code shows 10,000 for three epochs. And losses are means over tokens, not sums, so that
optim.clip_norm rarely has an effect; Adam does not depend on the scale.
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()

    c.data = dict(
        name="seqgan.oracle_data",
        params="",  # an .npz file, such as the oracle of the paper's code
        sequences=10_000,
        seq_len=20,
    )

    c.model = dict(
        name="seqgan.model",
        vocab_size=5000,
        max_len=20,
        generator="lstm",
        d_model=32,
        discriminator="cnn",
        discriminator_dropout=0.25,
    )

    c.task = dict(
        name="seqgan.oracle",
        mle_rounds=120,
        mle_updates=156,  # one epoch
        discriminator_rounds=50,
        pretrain_updates=939,  # three epochs over 10,000 real sequences
        negatives=785,  # generated batches per round: each 10,000 texts are shown in three epochs
        generator_updates=1,
        discriminator_updates=4695,  # five times three epochs
        discriminator_learning_rate=1e-4,
        discriminator_l2=0.2,
        adversarial_learning_rate=1e-2,
        reward="probability",
        rollouts=16,
        rollout_rate=0.8,
    )
    c.train.steps = 370

    c.optim.name = "adamw"
    c.optim.learning_rate = 1e-2
    c.optim.schedule = "constant"
    c.optim.clip_norm = 5.0
    c.train.batch_size = 64

    c.checkpoint.every = 5
    c.log.every = 1
    c.evals = dict(oracle=dict(kind="seqgan.oracle_eval", split="test", every=5))

    tiny = config.variants(variant, tiny=True)
    if tiny:
        c.model.update(vocab_size=100, filter_widths=(1, 2, 3), filters=(10, 10, 10))
        c.data.sequences = 1000
        c.task.update(
            mle_rounds=2,
            mle_updates=10,
            discriminator_rounds=1,
            pretrain_updates=10,
            negatives=2,
            discriminator_updates=8,
            rollouts=2,
        )
        c.train.steps, c.checkpoint.every = 6, 2
        c.evals.oracle.every, c.evals.oracle.batches = 2, 1
    return c
