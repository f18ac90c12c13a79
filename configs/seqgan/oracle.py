"""SeqGAN's oracle experiment, with its controls: minutes on two CPU cores.

    (none)        rewards of a discriminator and of text likelihood, after 5 rounds of MLE
    sharpen       the same without the discriminator
    paper         SeqGAN as published, with fewer updates, after 20 rounds of MLE
    control       as paper, with every reward 1/2 and no discriminator
    mle           maximum likelihood only
    scheduled     scheduled sampling
    temperature   maximum likelihood, sampled at several temperatures
    tiny          all phases in seconds

Test metrics after training, over three seeds: NLL_oracle 8.565 +- 0.051 and NLL_test 7.801 +- 0.016
(none; four minutes), 8.538 and 8.760 (control), 8.585 and 7.788 (sharpen), 8.958 and 8.348 (mle).
`bigjax seqgan-report` compares runs; --config.seed=N repeats one with another seed.
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()

    c.data = dict(
        name="seqgan.oracle_data",
        params="",  # an .npz file, such as the oracle of the paper's code
        seed=0,
        sequences=10_000,  # for training, and as many for testing
        seq_len=20,
    )

    c.model = dict(
        name="seqgan.model",
        vocab_size=5000,
        max_len=20,
        generator="lstm",
        d_model=32,
        discriminator="lstm",
        discriminator_dropout=0.5,
    )

    c.task = dict(
        name="seqgan.oracle",
        mle_rounds=5,
        mle_updates=156,  # one epoch
        discriminator_rounds=4,
        pretrain_updates=156,
        generator_updates=20,
        discriminator_updates=20,
        discriminator_learning_rate=5e-4,
        discriminator_l2=0.0,
        adversarial_learning_rate=2e-3,
        reward="log_odds",
        rollouts=0,
        baseline="batch",
        likelihood=0.45,
        kl=1.0,
    )
    c.train.steps = 19

    c.optim.name = "adamw"
    c.optim.learning_rate = 1e-2
    c.optim.schedule = "constant"
    c.optim.clip_norm = 5.0
    c.train.batch_size = 64
    c.mesh.data = 1  # two devices would spend their time on exchanging gradients

    c.checkpoint.every = 5
    c.log.every = 1
    c.evals = dict(oracle=dict(kind="seqgan.oracle_eval", split="test", every=1))

    choice = config.variants(
        variant,
        sharpen="sharpen",
        paper="paper",
        control="control",
        mle="mle",
        scheduled="scheduled",
        temperature="temperature",
        tiny="tiny",
    )
    if choice == "sharpen":
        c.task.update(reward="constant", likelihood=0.25)
        c.train.steps = 40
    if choice in ("paper", "control"):
        c.model.update(discriminator="cnn", discriminator_dropout=0.25)
        c.task.update(
            mle_rounds=20,
            discriminator_rounds=8,
            generator_updates=1,
            discriminator_updates=16,
            discriminator_learning_rate=1e-4,
            discriminator_l2=0.2,
            adversarial_learning_rate=1e-2,
            reward="probability",
            rollouts=16,
            baseline="none",
            likelihood=0.0,
            kl=0.0,
        )
        c.train.steps = 70
        c.evals.oracle.every = 2
    if choice == "control":
        c.task.update(reward="constant")
        c.train.steps = 90
    if choice in ("mle", "scheduled"):
        c.task.update(mle_rounds=20)
        c.train.steps = 20
    if choice == "scheduled":
        c.task.update(scheduled_sampling=0.5)
    if choice == "temperature":
        c.task.update(mle_rounds=8)
        c.train.steps = 8
        c.evals.oracle.temperatures = [0.9, 0.8, 0.7, 0.6]
    if choice == "tiny":
        c.model.update(vocab_size=100, discriminator_d_model=16)
        c.mesh.data = -1
        c.data.sequences = 1000
        c.task.update(
            mle_rounds=2,
            mle_updates=10,
            discriminator_rounds=1,
            pretrain_updates=10,
            generator_updates=2,
            discriminator_updates=4,
        )
        c.train.steps, c.checkpoint.every = 6, 2
        c.evals.oracle.batches = 1
    return c
