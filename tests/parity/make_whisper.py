"""Freezes reference numerics of Whisper for test_whisper.py and tests/unit/test_speech.py.

    python tests/parity/make_whisper.py       # needs PyTorch and transformers; no jax, no bigjax

writes whisper.npz and timestamps.npz beside itself, from Hugging Face transformers. Made with torch
2.13.0 (CPU) and transformers 5.24.0.

whisper.npz holds, in float32 and under the reference's own names:
    config           JSON, as of config.json
    params/NAME      the weights; grads/NAME the gradients of `loss`, of those that are trained
    audio            int16 [B, N]; lengths int [B]: of each row, which zeros follow
    mel              float [B, frames, n_mels], of the reference's feature extractor
    inputs, targets  int [B, T]; weights float [B, T], 0 on padding, whose tokens are random
    logits [B, T, V], loss []   loss = sum(weights * cross-entropy) / sum(weights), in nats
timestamps.npz holds what the rules of timestamps leave of random logits, in case i:
    logits_i         float [B, V]
    history_i        int [B, n]: the tokens that were decoded before
    allowed_i        bool [B, V]
and `ids`: the ids of the end, of <|notimestamps|>, and the largest index of a first timestamp.
"""

import json
import pathlib

from drawn import weights
import numpy as np
import torch
import torch.nn.functional as F
import transformers

HERE = pathlib.Path(__file__).parent
VOCAB, START = 61, 57
LENGTHS = [(16000, 13), (9000, 9), (2500, 15), (400, 1)]  # of audio and text
CONFIG = dict(
    vocab_size=VOCAB,
    num_mel_bins=16,
    d_model=24,
    encoder_layers=3,
    decoder_layers=2,
    encoder_attention_heads=3,
    decoder_attention_heads=3,
    encoder_ffn_dim=36,
    decoder_ffn_dim=36,
    max_source_positions=50,
    max_target_positions=20,
    decoder_start_token_id=START,
    pad_token_id=56,
    bos_token_id=56,
    eos_token_id=56,
    begin_suppress_tokens=None,
)
TIMES, END, NO_TIMES, MAX_FIRST = 30, 40, 45, 10  # timestamps from NO_TIMES + 1


def make_batch(rng):
    B, N, T = len(LENGTHS), *(max(x) for x in zip(*LENGTHS))
    audio, kept = np.zeros((B, N), np.int16), np.zeros((B, T), np.float32)
    targets = rng.integers(0, VOCAB, (B, T), dtype=np.int32)
    for b, (n, t) in enumerate(LENGTHS):
        time = np.arange(n) / 16000
        tones = sum(
            np.sin(2 * np.pi * f * time * (1 + 0.2 * time)) for f in rng.uniform(99, 4e3, 3)
        )
        audio[b, :n] = 30 * tones + rng.normal(0, 3, n)
        kept[b, :t] = rng.choice([0.5, 1.0, 2.0], t)
    inputs = np.concatenate([np.full((B, 1), START), targets[:, :-1]], 1).astype(np.int32)
    return dict(audio=audio, inputs=inputs, targets=targets, weights=kept)


def features(audio):
    """[B, n_mels, frames]"""
    extract = transformers.WhisperFeatureExtractor(
        feature_size=CONFIG["num_mel_bins"], chunk_length=1, sampling_rate=16000
    )
    rows = [row[:n].astype(np.float32) / 32768 for row, (n, _) in zip(audio, LENGTHS)]
    return extract(rows, sampling_rate=16000, return_tensors="pt").input_features


def freeze(seed):
    made = transformers.WhisperConfig(**CONFIG, attn_implementation="eager")
    model = transformers.WhisperForConditionalGeneration(made)
    skipped = ("proj_out.weight", "encoder.embed_positions.weight")
    names = {n: tuple(p.shape) for n, p in model.state_dict().items() if not n.endswith(skipped)}
    values = weights(names, seed)
    variables = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in values.items():
            variables[name].copy_(torch.from_numpy(value))
    model.eval()  # no dropout
    batch = make_batch(np.random.default_rng(seed))
    mel = features(batch["audio"])
    long = {k: torch.from_numpy(x).long() for k, x in batch.items() if x.dtype == np.int32}
    logits = model(input_features=mel, decoder_input_ids=long["inputs"], use_cache=False).logits
    nll = F.cross_entropy(logits.flatten(0, 1), long["targets"].flatten(), reduction="none")
    kept = torch.from_numpy(batch["weights"]).flatten()
    loss = (nll * kept).sum() / kept.sum()
    trained = {n: variables[n] for n in values if variables[n].requires_grad}
    grads = torch.autograd.grad(loss, [*trained.values()])
    positions = "model.encoder.embed_positions.weight"
    values[positions] = variables[positions].numpy()
    arrays = dict(
        batch,
        lengths=np.array([n for n, _ in LENGTHS], np.int32),
        config=np.array(json.dumps(dict(CONFIG, model_type="whisper"))),
        mel=mel.numpy().transpose(0, 2, 1),
        logits=logits.detach().numpy(),
        loss=loss.detach().numpy(),
    )
    arrays |= {f"params/{n}": x for n, x in values.items()}
    arrays |= {f"grads/{n}": g.numpy() for n, g in zip(trained, grads)}
    save("whisper", arrays)
    print(f"loss {loss.item():.4f}")


def freeze_timestamps(seed):
    """Histories of 0 to 9 tokens: texts, pairs of timestamps, and what breaks the rules."""
    options = transformers.GenerationConfig(
        eos_token_id=END,
        bos_token_id=END,
        no_timestamps_token_id=NO_TIMES,
        max_initial_timestamp_index=MAX_FIRST,
    )
    processor = transformers.generation.logits_process.WhisperTimeStampLogitsProcessor(options, 0)
    rng, V, arrays = np.random.default_rng(seed), NO_TIMES + 1 + TIMES, {}
    arrays["ids"] = np.array([END, NO_TIMES, MAX_FIRST], np.int32)
    for n in range(10):
        B = 40
        timed = rng.random((B, n)) < 0.5
        times = NO_TIMES + 1 + np.sort(rng.integers(0, TIMES, (B, n)), 1)
        history = np.where(timed, times, rng.integers(0, END, (B, n))).astype(np.int32)
        logits = rng.normal(0, 2, (B, V)).astype(np.float32)
        logits[::3, NO_TIMES + 1 :] += 2  # more often timestamps are likelier than each text token
        out = processor(torch.from_numpy(history).long(), torch.from_numpy(logits))
        arrays |= {f"logits_{n}": logits, f"history_{n}": history}
        arrays[f"allowed_{n}"] = out.numpy() > -np.inf
    save("timestamps", arrays)


def save(name, arrays):
    path = HERE / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def main():
    torch.set_num_threads(1)  # fixes the order of sums, so that the files are reproducible
    freeze(seed=1)
    freeze_timestamps(seed=2)


if __name__ == "__main__":
    main()
