"""Headlines for articles by SeqGAN with an encoder; :titles, without articles.

By default an article is a docstring without its first line, and the first line is its headline: on
test data ROUGE-1 0.278 and BLEU 11.1, where the article's lead sentence has 0.180 and 3.5. With a
file of your own (.jsonl, .csv, .tsv or .parquet, one headline per row; `bigjax config` shows all
columns):

    bigjax train --config=configs/seqgan/headlines.py --workdir=runs/mine \\
        --config.data.train=news.jsonl --config.data.columns.headline=title \\
        --config.data.columns.article=body --config.data.columns.clicks=clicks \\
        --config.data.columns.impressions=shown --config.data.columns.published=date \\
        --config.data.columns.tags=section

Set a column that the file does not have to '', and without clicks model.click_buckets to 0. Then:

    bigjax headline --workdir=runs/mine --article=article.txt --clicks=high
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    choice = config.variants(variant, tiny="tiny", titles="titles")

    c.model = dict(
        name="seqgan.headline_model",
        vocab_size=4096,
        max_len=20,
        article_len=64,
        encoder="lstm",  # lstm, bert
        generator="lstm",  # lstm, gru
        d_model=128,
        dropout=0.2,
        click_buckets=8,
        hot_per_example=8,
        discriminator="cnn",  # cnn, lstm, bert
        filter_widths=(1, 2, 3, 4, 5),
        filters=(50, 100, 100, 50, 50),
    )
    # A step is a round of many updates: first rounds of maximum likelihood, then of the
    # discriminator, then adversarial rounds up to train.steps.
    c.task = dict(
        name="seqgan.headline",
        mle_rounds=16,
        mle_updates=100,
        discriminator_rounds=2,
        pretrain_updates=100,
        generator_updates=4,
        discriminator_updates=8,
        adversarial_learning_rate=2e-4,
        discriminator_learning_rate=1e-3,
        discriminator_l2=0.01,
        rollouts=2,
        baseline="batch",
        teacher_forcing=0.5,  # without it a few rounds forget the articles
        click_reward=0.0,  # above 0: prefer headlines with many expected clicks
        augment=0.0,  # 0.05 to 0.1 with a few thousand articles
        embeddings="",  # a file from `bigjax embeddings`
    )

    c.data = dict(
        name="seqgan.headline_data",
        train="docstrings:headline",
        seq_len=20,  # tokens of a headline
        truncate=True,
        tokenizer=dict(kind="wordpiece", vocab_size=4096),
        valid_fraction=0.03,
        test_fraction=0.03,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = 3e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100
    c.optim.final_fraction = 0.1
    c.optim.weight_decay = 0.01

    c.train.steps = 24
    c.train.batch_size = 32

    c.checkpoint.every = 2
    c.log.every = 1
    c.evals = dict(
        valid=dict(kind="loss", every=2, batches=10),
        headlines=dict(kind="seqgan.headlines_eval", every=8, batches=6),
    )

    if choice == "titles":  # Chinese titles only: set data.train to their file
        c.model.update(article_len=32, max_len=32, click_buckets=0, filter_widths=(1, 2, 3, 4))
        c.model.filters = (100, 100, 100, 100)
        c.model.vocab_size = c.data.tokenizer.vocab_size = 5120  # Chinese has many characters
        c.data.train = "set data.train"
        c.data.seq_len = 32
        c.data.columns = dict(
            headline="title",
            article="",  # the source is then earlier titles with the same tags
            tags="",
        )
    if choice == "tiny":  # without clicks and hot words, which take long to extract
        c.model.update(
            click_buckets=0,
            d_model=32,
            article_len=32,
            max_len=12,
            vocab_size=2048,
            discriminator_d_model=32,
            filter_widths=(1, 2, 3),
            filters=(20, 20, 20),
        )
        c.task.update(
            mle_rounds=2,
            mle_updates=20,
            discriminator_rounds=0,
            generator_updates=1,
            discriminator_updates=2,
            rollouts=0,
            teacher_forcing=0.0,
            hot_words=0,
        )
        c.data.tokenizer.vocab_size = 2048
        c.data.seq_len = 12
        c.optim.warmup_steps = 5
        c.train.steps = 3
        c.train.batch_size = 8
        c.checkpoint.every = 3
        c.evals.valid.update(every=2, batches=2)
        c.evals.headlines.update(every=3, batches=1)
    return c
