"""Freezes reference numerics of BERT and its heads for test_bert.py.

    python tests/parity/make_bert.py       # needs PyTorch and transformers; no jax, no bigjax

writes bert_pretraining.npz, bert_classifier.npz, bert_tagger.npz and bert_span.npz beside itself,
from Hugging Face transformers' models of these heads. Made with torch 2.13.0 (CPU) and
transformers 5.23.0.

Each file holds, in float32 and under the reference's own names:
    config           JSON: sizes, epsilon
    params/NAME      the weights; grads/NAME the gradients of `loss`
    tokens, types, segments     int [B, T]; segment 0 is padding, whose tokens and types are random
    loss []          in nats, a mean as transformers defines it
and by head
    pretraining      mlm [B, T, V], nsp [B, 2]; mlm_labels int [B, T] (-100: no loss), nsp_labels
                     int [B], 0 = the second text follows the first; mean over labels + mean over B
    classifier       logits [B, 3]; labels int [B]
    tagger           logits [B, T, 3]; labels int [B, T] (-100: no loss)
    span             logits [B, T, 2]: start, end; starts, ends int [B]
"""

import json
import math
import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
VOCAB, T, N_LABELS = 61, 20, 3
# For each row: its length, the start of its second text, the number of masked tokens.
ROWS = [(20, 8, 3), (13, 11, 2), (17, 3, 5), (9, 9, 1)]  # the last one has no second text
CONFIG = dict(
    vocab_size=VOCAB,
    max_position_embeddings=32,
    type_vocab_size=2,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    layer_norm_eps=1e-12,
    num_labels=2,
)


def make_batch(rng):
    """Tokens, types and segments, each int [B, T]."""
    shape = len(ROWS), T
    types, segments = rng.integers(0, 2, shape, dtype=np.int32), np.zeros(shape, np.int32)
    for b, (length, second, _) in enumerate(ROWS):
        types[b, :length] = np.arange(length) >= second
        segments[b, :length] = 1
    return dict(
        tokens=rng.integers(0, VOCAB, shape, dtype=np.int32), types=types, segments=segments
    )


def draw(model, rng):
    """Fills a model with weights that expose mistakes.

    Norm scales and biases are random, not 1 and 0. Dense layers are wide enough for attention to
    be far from uniform. Embeddings are small, so that the epsilon of the first norm matters; in the
    mlm head values are small enough for that, and large enough to distinguish variants of GELU.
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                value = rng.normal(0, 0.2, p.shape)
            elif "LayerNorm" in name:
                value = rng.uniform(0.5, 1.5, p.shape)
            elif "_embeddings" in name:
                value = rng.normal(0, 0.05, p.shape)
            else:  # [out, in]
                width = 0.5 if "transform.dense" in name else 1.2
                value = rng.normal(0, width / math.sqrt(p.shape[1]), p.shape)
            p.copy_(torch.from_numpy(value.astype(np.float32)))


def call(model, batch, rows=slice(None), columns=slice(None), **labels):
    """The model's own output; labels make it compute its own loss."""
    part = lambda name: torch.from_numpy(batch[name][rows, columns]).long()
    return model(
        input_ids=part("tokens"),
        token_type_ids=part("types"),
        attention_mask=part("segments"),
        **{k: torch.from_numpy(v).long() for k, v in labels.items()},
    )


def freeze(name, model, config, batch, labels, outputs, loss):
    loss.backward()
    arrays = dict(batch, config=np.array(json.dumps(config)), loss=loss.detach().numpy(), **labels)
    arrays |= {key: x.detach().numpy() for key, x in outputs.items()}
    for key, p in model.named_parameters():
        arrays[f"params/{key}"], arrays[f"grads/{key}"] = p.detach().numpy(), p.grad.numpy()
    path = HERE / f"bert_{name}.npz"
    np.savez_compressed(path, **arrays)
    spread = ", ".join(f"{key} std {x.std().item():.2f}" for key, x in outputs.items())
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, loss {loss.item():.4f}, {spread}")


def new(cls, seed, **changes):
    """(model, its config, a batch, the generator that drew them)."""
    rng, config = np.random.default_rng(seed), CONFIG | changes
    # No padding token: transformers does not train its embedding, even where it is not padding.
    model = cls(
        transformers.BertConfig(
            **config, hidden_act="gelu", pad_token_id=None, attn_implementation="eager"
        )
    )
    draw(model, rng)
    return model.eval(), config, make_batch(rng), rng  # eval: no dropout


def make_pretraining():
    model, config, batch, rng = new(transformers.BertForPreTraining, 1)
    mlm_labels = np.full((len(ROWS), T), -100, np.int32)
    for b, (length, _, n) in enumerate(ROWS):
        at = rng.choice(np.arange(1, length), n, replace=False)
        mlm_labels[b, at] = rng.integers(0, VOCAB, n)
    nsp_labels = np.array([0, 1, 1, 0], np.int32)
    out = call(model, batch, labels=mlm_labels, next_sentence_label=nsp_labels)
    freeze(
        "pretraining",
        model,
        config,
        batch,
        dict(mlm_labels=mlm_labels, nsp_labels=nsp_labels),
        dict(mlm=out.prediction_logits, nsp=out.seq_relationship_logits),
        out.loss,
    )


def make_classifier():
    # An epsilon that matters in every norm, also where the variance is near 1.
    model, config, batch, _ = new(
        transformers.BertForSequenceClassification, 2, num_labels=N_LABELS, layer_norm_eps=1e-3
    )
    labels = np.array([2, 0, 1, 1], np.int32)
    out = call(model, batch, labels=labels)
    freeze(
        "classifier", model, config, batch, dict(labels=labels), dict(logits=out.logits), out.loss
    )


def make_tagger():
    model, config, batch, rng = new(transformers.BertForTokenClassification, 3, num_labels=N_LABELS)
    # As with words of several pieces: not every real token has a label.
    labelled = (batch["segments"] > 0) & (rng.uniform(size=(len(ROWS), T)) < 0.7)
    labels = np.where(labelled, rng.integers(0, N_LABELS, (len(ROWS), T)), -100).astype(np.int32)
    out = call(model, batch, labels=labels)
    freeze("tagger", model, config, batch, dict(labels=labels), dict(logits=out.logits), out.loss)


def make_span():
    """The loss is computed for each row without its padding: in a padded batch transformers lets a
    span start in the padding, whose logits are arbitrary."""
    model, config, batch, _ = new(transformers.BertForQuestionAnswering, 4)
    starts, ends = np.array([9, 2, 16, 0], np.int32), np.array([12, 2, 16, 8], np.int32)
    out = call(model, batch)
    loss = sum(
        call(
            model,
            batch,
            slice(b, b + 1),
            slice(0, length),
            start_positions=starts[b : b + 1],
            end_positions=ends[b : b + 1],
        ).loss
        for b, (length, _, _) in enumerate(ROWS)
    ) / len(ROWS)
    freeze(
        "span",
        model,
        config,
        batch,
        dict(starts=starts, ends=ends),
        dict(logits=torch.stack([out.start_logits, out.end_logits], -1)),
        loss,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)  # fixes the order of sums, so that the files are reproducible
    make_pretraining()
    make_classifier()
    make_tagger()
    make_span()
