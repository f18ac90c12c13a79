"""Freezes reference numerics of T5, T5 1.1 and Marian for test_t5.py.

    python tests/parity/make_t5.py       # needs PyTorch and transformers; no jax, no bigjax

writes t5.npz, t5_1_1.npz, marian.npz and beams.npz beside itself, from Hugging Face transformers.
Made with torch 2.13.0 (CPU) and transformers 5.17.0.

The first three hold, in float32 and under the reference's own names:
    config           JSON, as of config.json
    params/NAME      the weights; grads/NAME the gradients of `loss`
    source, source_segments   int [B, S], segment 0 is padding, whose tokens are random
    inputs, targets  int [B, T]; weights float [B, T], 0 on padding, whose tokens are random
    logits [B, T, V], loss []   loss = sum(weights * cross-entropy) / sum(weights), in nats
beams.npz holds what beam search finds with 50 random models and sources: of model i
    config_i         JSON: config.json, and `search`: width, length_penalty, max_new_tokens
    source_i         int [B, S]; 0 is padding
    tokens_i         int [B, width, n], best first, after the start token; pad after the end
    scores_i         float [B, width]
The weights of its models are those of drawn.py, which test_t5.py computes again.
"""

import json
import pathlib

from drawn import weights
import numpy as np
import torch
import torch.nn.functional as F
import transformers

HERE = pathlib.Path(__file__).parent
VOCAB = 61
LENGTHS = [(24, 13), (17, 9), (6, 15), (1, 1)]  # of source and target
SIZES = dict(
    vocab_size=VOCAB, d_model=24, d_kv=10, d_ff=36, num_heads=3, num_layers=3, num_decoder_layers=2
)
POSITIONS = dict(relative_attention_num_buckets=16, relative_attention_max_distance=20)
TOKENS = dict(pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)


def fill(model, config, seed, gain=1.2):
    """Sets the weights of a model of transformers; the output layer is tied if the config says."""
    tied = config.get("tie_word_embeddings", True)
    names = {n: tuple(p.shape) for n, p in model.state_dict().items()}
    skipped = ("embed_tokens.weight", "embed_positions.weight")
    names = {n: s for n, s in names.items() if not n.endswith(skipped)}
    if tied:
        names.pop("lm_head.weight")
    else:  # transformers 5 ties it in spite of the config
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    values = weights(names, seed, gain)
    with torch.no_grad():
        for name, value in values.items():
            model.state_dict(keep_vars=True)[name].copy_(torch.from_numpy(value))
    return values


def make_batch(rng, start):
    S, T = (max(x) for x in zip(*LENGTHS))
    B = len(LENGTHS)
    tokens = lambda n: rng.integers(2, VOCAB, (B, n), dtype=np.int32)
    source, targets = tokens(S), tokens(T)
    segments, kept = np.zeros((B, S), np.int32), np.zeros((B, T), np.float32)
    for b, (s, t) in enumerate(LENGTHS):
        segments[b, :s] = 1
        kept[b, :t] = rng.choice([0.5, 1.0, 2.0], t)
    inputs = np.concatenate([np.full((B, 1), start), targets[:, :-1]], 1)
    return dict(
        source=source,
        source_segments=segments,
        inputs=inputs.astype(np.int32),
        targets=targets,
        weights=kept,
    )


def freeze(name, config, model, seed):
    values = fill(model, config, seed)
    model.eval()  # no dropout
    batch = make_batch(np.random.default_rng(seed), config["decoder_start_token_id"])
    long = {k: torch.from_numpy(x).long() for k, x in batch.items() if x.dtype == np.int32}
    logits = model(
        input_ids=long["source"],
        attention_mask=long["source_segments"],
        decoder_input_ids=long["inputs"],
        use_cache=False,
    ).logits
    nll = F.cross_entropy(logits.flatten(0, 1), long["targets"].flatten(), reduction="none")
    kept = torch.from_numpy(batch["weights"]).flatten()
    loss = (nll * kept).sum() / kept.sum()
    variables = model.state_dict(keep_vars=True)
    trained = {n: variables[n] for n in values if variables[n].requires_grad}
    grads = torch.autograd.grad(loss, [*trained.values()])
    arrays = dict(
        batch,
        config=np.array(json.dumps(config)),
        logits=logits.detach().numpy(),
        loss=loss.detach().numpy(),
    )
    arrays |= {f"params/{n}": x for n, x in values.items()}
    arrays |= {f"grads/{n}": g.numpy() for n, g in zip(trained, grads)}
    path = HERE / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, loss {loss.item():.4f}")


def t5(**more):
    config = dict(SIZES, **POSITIONS, **TOKENS, **more)
    made = transformers.T5Config(**config, attn_implementation="eager")
    return dict(config, model_type="t5"), transformers.T5ForConditionalGeneration(made)


def marian():
    config = dict(
        vocab_size=VOCAB,
        d_model=24,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=36,
        decoder_ffn_dim=36,
        activation_function="swish",
        scale_embedding=True,
        max_position_embeddings=40,
        forced_eos_token_id=None,
        # Its embedding has no gradient for padding, with which published models start.
        **{**TOKENS, "decoder_start_token_id": 2},
    )
    made = transformers.MarianConfig(**config, attn_implementation="eager")
    return dict(config, model_type="marian"), transformers.MarianMTModel(made)


def search(i: int) -> dict:
    """What beam search finds with random model i: one of T5 or Marian, with other settings."""
    rng = np.random.default_rng(1000 + i)
    kinds = [lambda: t5(feed_forward_proj="relu"), marian]
    kinds.append(lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    config, model = kinds[i % 3]()
    gain = float(rng.uniform(0.8, 2.0))  # larger weights give surer models
    fill(model, config, 1000 + i, gain)
    model.eval()
    lengths = rng.integers(1, 12, 3)
    source = np.where(
        np.arange(12) < lengths[:, None], rng.integers(2, VOCAB, (3, 12)), TOKENS["pad_token_id"]
    )
    width, penalty = int(rng.integers(1, 6)), float(rng.choice([0.0, 0.6, 1.0, 2.0]))
    n = int(rng.integers(4, 25))
    ids = torch.from_numpy(source).long()
    found = model.generate(
        input_ids=ids,
        attention_mask=(ids != TOKENS["pad_token_id"]).long(),
        num_beams=width,
        num_return_sequences=width,
        length_penalty=penalty,
        max_new_tokens=n,
        min_length=0,
        early_stopping="never",
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = getattr(found, "sequences_scores", None)
    if scores is None:  # a width of 1 is greedy decoding
        scores = greedy_scores(found, penalty)
    tokens = found.sequences[:, 1:].numpy().reshape(len(source), width, -1)
    ends = tokens == TOKENS["eos_token_id"]
    tokens = np.where(ends.cumsum(-1) - ends > 0, TOKENS["pad_token_id"], tokens)
    about = dict(config, seed=1000 + i, gain=gain)
    about["search"] = dict(width=width, length_penalty=penalty, max_new_tokens=n)
    return {
        f"config_{i}": np.array(json.dumps(about)),
        f"source_{i}": source.astype(np.int32),
        f"tokens_{i}": tokens.astype(np.int32),
        f"scores_{i}": scores.numpy().reshape(len(source), width).astype(np.float32),
    }


def greedy_scores(found, penalty):
    tokens = found.sequences[:, 1:]
    log_p = torch.stack(found.scores, 1).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    ended = (tokens == TOKENS["eos_token_id"]).cumsum(1) - (tokens == TOKENS["eos_token_id"]).int()
    real = ended == 0
    return (log_p * real).sum(1) / real.sum(1) ** penalty


def main():
    torch.set_num_threads(1)  # fixes the order of sums, so that the files are reproducible
    freeze("t5", *t5(feed_forward_proj="relu"), seed=1)
    freeze("t5_1_1", *t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False), seed=2)
    freeze("marian", *marian(), seed=3)
    arrays = {}
    for i in range(50):
        arrays |= search(i)
    np.savez_compressed(HERE / "beams.npz", **arrays)


if __name__ == "__main__":
    main()
