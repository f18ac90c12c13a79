"""Recurrent encoder-decoders: copying, what is refused, their data and their pictures."""

import dataclasses
import datetime
import types

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import tasks
from bigjax.data import dates
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.evals import alignment
from bigjax.infer import batch
from bigjax.infer.batch import Search
from bigjax.layers.params import unbox
from bigjax.models import gpt, seq2seq
from bigjax.parallel import mesh as mesh_lib
from tests import helpers

SIZES = dict(vocab_size=31, d_model=16, max_len=16)


def variables_of(c, seed=0):
    one = jnp.zeros((1, 1), jnp.int32)
    return unbox(jax.jit(seq2seq.Model(c).init)(jax.random.key(seed), one, one))


def test_counts():
    """LSTM: two directions of a half, an embedding that is the output layer too."""
    count = lambda **more: sum(
        x.size for x in jax.tree.leaves(variables_of(seq2seq.Config(**SIZES, **more)))
    )
    gates, H = 4, 8
    encoder = 2 * (gates * H * (16 + H) + gates * H)
    decoder = gates * 16 * 32 + gates * 16
    attention = 2 * 16 * 16 + 16 + 32 * 16 + 16
    assert count() == 31 * 16 + 31 + encoder + decoder + attention + 16 * 32 + 32
    assert count(copy=True) - count() == 17
    assert count() - count(score="dot") == 16


def test_a_sure_gate_copies_what_is_attended_to():
    c = seq2seq.Config(**SIZES, copy=True)
    variables = variables_of(c)
    variables["params"]["gate"]["bias"] = jnp.full(1, 50.0)
    decoder = seq2seq.decoder(c)
    context, first = decoder.context([[3, 4, 5], [6]])
    state = decoder.begin(variables, context, 8)
    share = decoder.attention(variables, state, first)
    logits, _ = decoder.step(variables, state, first)
    p = np.exp(logits)
    np.testing.assert_allclose(p[0, [3, 4, 5]], share[0, :3], atol=1e-5)
    np.testing.assert_allclose(p[1, 6], 1, atol=1e-5)


def test_beams_share_a_source():
    """The texts and scores of three beams are those of single rows that are repeated."""
    c = seq2seq.Config(**SIZES, score="dot")
    variables = jax.tree.map(lambda x: 4 * x, variables_of(c))
    decoder, sources = seq2seq.decoder(c), [[3, 4, 5, 1], [6, 1]]
    ends = dict(end_id=1, pad_id=0)
    together = batch.search(decoder, variables, sources, 6, Search(3, 3), **ends)
    for source, texts in zip(sources, together):
        (alone,) = batch.search(decoder, variables, [source], 6, Search(3, 3), **ends)
        assert [t.ids for t in alone] == [t.ids for t in texts]
        tokens = jnp.array([[0, *texts[0].ids, 1][:6]])
        out = seq2seq.Model(c).apply(variables, jnp.array([source]), tokens)
        log_p = jax.nn.log_softmax(out.logits)[0]
        targets = [*texts[0].ids, 1][:6]
        mean = float(np.mean([log_p[i, t] for i, t in enumerate(targets)]))
        assert texts[0].score == pytest.approx(mean, abs=1e-4)


def test_labels_are_smoothed_with_copying():
    """Its output is log-probabilities, which are not those of an output layer."""
    c = config_lib.new_config()
    c.model = dict(name="seq2seq", copy=True, dropout=0.0, **SIZES)
    c.task = dict(name="seq2seq", label_smoothing=0.1)
    c.data = dict(name="text_to_text", train="dates", seq_len=16, target_len=8, packing=False)
    task = tasks.build(helpers.filled(c))
    ids, places = np.array([[3, 4, 5, 1]]), np.arange(4)[None]
    batch = dict(source=ids, source_segment_ids=ids > 0, source_positions=places)
    batch |= dict(targets=ids, segment_ids=ids > 0, positions=places)
    batch["weights"] = np.array([[1.0, 1, 1, 0]], np.float32)
    variables = variables_of(task.model_config)
    loss = lambda train: task.loss(variables["params"], {}, {}, batch, jax.random.key(0), train)
    log_p = task.model.apply(variables, ids, jnp.array([[0, 3, 4, 5]])).logits[0, :3]
    nll, uniform = -sum(log_p[i, t] for i, t in enumerate((3, 4, 5))), -log_p.mean(-1).sum()
    assert float(loss(False)[0][0]) == pytest.approx(float(nll), rel=1e-5)
    assert float(loss(True)[0][0]) == pytest.approx(float(0.9 * nll + 0.1 * uniform), rel=1e-5)


def test_packed_rows_are_refused():
    c = config_lib.new_config()
    c.model = dict(name="seq2seq", **SIZES)
    c.task = dict(name="seq2seq")
    c.data = dict(name="text_to_text", train="dates", seq_len=16, target_len=8)
    with pytest.raises(UserError, match="data.packing=True puts several pairs into a row"):
        tasks.build(helpers.filled(c))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(d_model=15), "d_model is 15; it must be even"),
        (dict(start_id=31), "start_id is 31; it must be less than model.vocab_size=31"),
        (dict(score="cosine"), "score is 'cosine'; allowed: additive, dot"),
        (dict(cell="mlstm"), "cell is 'mlstm'; allowed: lstm, gru, rnn"),
    ],
)
def test_invalid_sizes_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        seq2seq.Config(**{**SIZES, **fields})


def test_dates():
    rows = [*dates.rows()]
    assert len(rows) == dates.N and rows == [*dates.rows()]
    assert rows[0]["source"] != rows[1]["source"]
    parsed = [datetime.date.fromisoformat(row["target"]) for row in rows]
    assert min(parsed).year == 1950 and max(parsed).year == 2049
    assert len({d.year for d in parsed}) == 100 and len({d.day for d in parsed}) == 31
    assert dates._written(datetime.date(1998, 5, 23), 2) == "Saturday, 23rd of May 1998"
    assert [dates._ordinal(d) for d in (1, 2, 3, 4, 11, 12, 13, 21, 31)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "31st")
    ]
    assert dates._written(datetime.date(2005, 1, 2), 8) == "Jan 02 '05"


def test_pictures_of_the_alignment(tmp_path):
    c = seq2seq.Config(vocab_size=259, d_model=8, max_len=16, start_id=256)
    variables, logged = variables_of(c), []
    sources = [[97, 98, 257], [99, 257]]
    context = types.SimpleNamespace(
        config=ConfigDict(
            dict(model=dict(name="seq2seq"), data=dict(target_len=5), python_path="")
        ),
        corpus=types.SimpleNamespace(inputs=lambda split: sources, tokenizer=Bytes()),
        task=tasks.Task(
            init=None, axes={}, loss=None, load_data=None, batch_shapes=None, model_config=c
        ),
        frozen={},
        mesh=mesh_lib.make_mesh(dict(data=1), jax.devices()[:1]),
        log=logged.append,
        write=lambda name, write: write(tmp_path) or "",
    )
    evaluate = alignment.build("look", alignment.Config(n=2), context)
    assert evaluate(variables["params"], {}, 3) == {} and evaluate.metrics == ()
    assert (tmp_path / "step_3.png").stat().st_size > 5000 and "step 3" in logged[0]
    decoder = seq2seq.decoder(c)
    tokens, shares = alignment.write(decoder, 5, variables, *decoder.context(sources))
    assert tokens.shape == (2, 5) and shares.shape == (2, 5, 16)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
    context.config.model.name = "gpt"
    with pytest.raises(UserError, match="needs a model that attends to a source"):
        context.task = dataclasses.replace(context.task, model_config=gpt.Config())
        alignment.build("look", alignment.Config(), context)
