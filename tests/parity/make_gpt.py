"""Freezes reference numerics of GPT-2, Llama and PaLM blocks for test_gpt.py.

    python tests/parity/make_gpt.py        # needs PyTorch and transformers; no jax, no bigjax

writes gpt2.npz, llama.npz, llama3.npz and palm.npz beside itself. GPT-2 and Llama are those of
Hugging Face transformers; the PaLM block is written out below from its paper. Made with torch
2.13.0 (CPU) and transformers 5.23.0.

Each file holds, in float32 and under the reference's own names:
    config           JSON: sizes, epsilons, theta
    params/NAME      the weights; grads/NAME the gradients of `loss`
    inputs, targets, positions, segments   int [B, T]; segment 0 is padding
    weights          float [B, T]
    logits [B, T, V], loss []   loss = sum(weights * cross-entropy) / sum(weights), in nats
"""

import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import transformers

HERE = pathlib.Path(__file__).parent
VOCAB = 61
# Rows of packed documents: (length, position of the first token). The second row begins in the
# middle of a document, as a row of a token stream does, and ends with two tokens of padding.
ROWS = [[(7, 0), (5, 0), (8, 0)], [(12, 9), (6, 0)], [(20, 0)]]
T, MAX_LEN = 20, 32
# One longer row: attention kernels split sequences into blocks, and a block may end in a document.
LONG_ROWS, LONG_T = [[(150, 0), (101, 0)]], 256


def make_batch(rng, rows, T):
    """Tokens, positions, segments and loss weights, each [B, T]."""
    B = len(rows)
    positions, segments = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], (B, T), p=[0.2, 0.2, 0.4, 0.2]).astype(np.float32)
    for b, row in enumerate(rows):
        t = 0
        for number, (length, first) in enumerate(row, start=1):
            positions[b, t : t + length] = range(first, first + length)
            segments[b, t : t + length] = number
            t += length
            weights[b, t - 1] = 0.0  # the next token is of another document
        weights[b, t:] = 0.0
    tokens = lambda: rng.integers(0, VOCAB, (B, T), dtype=np.int32)
    return dict(
        inputs=tokens(), targets=tokens(), positions=positions, segments=segments, weights=weights
    )


def visible(segments):
    """Whether query t may attend to key s, bool [B, T, T]."""
    B, T = segments.shape
    see = np.zeros((B, T, T), bool)
    for b in range(B):
        for t in range(T):
            for s in range(t + 1):
                see[b, t, s] = segments[b, s] == segments[b, t] and segments[b, t] > 0
            see[b, t, t] = True  # padding attends to itself, as a softmax needs a key
    return see


def draw(model, rng):
    """Fills a model with weights that expose mistakes.

    Norm scales and biases are random, not 1 and 0. Dense layers are wide enough for attention to
    be far from uniform; embeddings are small, so that the epsilon of the first norm matters.
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(part in name for part in ("embed", "wte", "wpe")):
                value = rng.normal(0, 0.1, p.shape)
            elif name.endswith("bias"):
                value = rng.normal(0, 0.2, p.shape)
            elif p.ndim == 1:  # scale of a norm
                value = rng.uniform(0.5, 1.5, p.shape)
            else:  # [out, in] in torch's Linear, [in, out] in GPT-2's Conv1D
                fan_in = (
                    p.shape[0] if isinstance(model, transformers.GPT2LMHeadModel) else p.shape[1]
                )
                value = rng.normal(0, 1.2 / math.sqrt(fan_in), p.shape)
            p.copy_(torch.from_numpy(value.astype(np.float32)))


def hugging_face(model):
    """forward(inputs, positions, visible or None) -> logits, of a transformers model."""

    def forward(inputs, positions, see):
        mask = None
        if see is not None:
            mask = torch.zeros(see.shape).masked_fill(~see, torch.finfo(torch.float32).min)[:, None]
        return model(
            input_ids=inputs, position_ids=positions, attention_mask=mask, use_cache=False
        ).logits

    return forward


class Palm(torch.nn.Module):
    """Parallel blocks as in PaLM (https://arxiv.org/abs/2204.02311, section 2).

    y = x + MLP(LayerNorm(x)) + Attention(LayerNorm(x)); one key and value head; SwiGLU
    swish(x W) * (x V); rotary positions; no biases; input and output embeddings shared. The
    paper's factor 1 / sqrt(d) on the logits is omitted. Weights are [out, in], as in Linear.
    """

    def __init__(self, d, heads, head_dim, d_ff, layers, eps, theta):
        super().__init__()
        self.heads, self.head_dim, self.eps, self.theta = heads, head_dim, eps, theta
        new = lambda *shape: torch.nn.Parameter(torch.zeros(shape))
        self.embed = new(VOCAB, d)
        self.blocks = torch.nn.ModuleList()
        for _ in range(layers):
            block = torch.nn.Module()
            block.norm = new(d)
            block.q, block.k, block.v = new(heads * head_dim, d), new(head_dim, d), new(head_dim, d)
            block.o = new(d, heads * head_dim)
            block.w, block.v_gate, block.down = new(d_ff, d), new(d_ff, d), new(d, d_ff)
            self.blocks.append(block)
        self.norm = new(d)

    def layer_norm(self, x, scale):
        x = x - x.mean(-1, keepdim=True)
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * scale

    def rotate(self, x, positions):
        """x [T, head_dim]: the pair (j, j + head_dim / 2) is a complex number, rotated by
        position * theta ** (-2 j / head_dim)."""
        half = self.head_dim // 2
        j = torch.arange(half, dtype=torch.float32)
        angle = positions[:, None].float() * torch.pow(
            torch.tensor(self.theta), -2 * j / self.head_dim
        )
        rotated = torch.complex(x[:, :half].contiguous(), x[:, half:].contiguous()) * torch.polar(
            torch.ones_like(angle), angle
        )
        return torch.cat([rotated.real, rotated.imag], -1)

    def row(self, tokens, positions, see):
        x = self.embed[tokens]
        D = self.head_dim
        for block in self.blocks:
            h = self.layer_norm(x, block.norm)
            key, value = self.rotate(h @ block.k.T, positions), h @ block.v.T
            heads = []
            for i in range(self.heads):
                query = self.rotate(h @ block.q[i * D : (i + 1) * D].T, positions)
                scores = (query @ key.T / math.sqrt(D)).masked_fill(~see, -math.inf)
                heads.append(torch.softmax(scores, -1) @ value)
            gate = h @ block.w.T
            mlp = (gate * torch.sigmoid(gate) * (h @ block.v_gate.T)) @ block.down.T
            x = x + torch.cat(heads, -1) @ block.o.T + mlp
        return self.layer_norm(x, self.norm) @ self.embed.T

    def forward(self, inputs, positions, see):
        if see is None:
            see = torch.ones(inputs.shape[0], *inputs.shape[1:] * 2).tril().bool()
        return torch.stack([self.row(*r) for r in zip(inputs, positions, see)])


def check_separate_documents(forward, rows, batch, logits):
    """Checks that each packed document has the logits that it has alone, without a mask."""
    for b, row in enumerate(rows):
        for number in range(1, len(row) + 1):
            at = batch["segments"][b] == number
            alone = forward(
                torch.from_numpy(batch["inputs"][b, at]).long()[None],
                torch.from_numpy(batch["positions"][b, at]).long()[None],
                None,
            )[0]
            torch.testing.assert_close(alone, logits[b, at], rtol=1e-4, atol=1e-4)


def freeze(
    name,
    config,
    model,
    forward,
    seed,
    rows=ROWS,
    length=T,
    separate=True,
    rename=lambda key: key,
    double=False,
):
    """separate: whether to check that packed documents are independent. rename: of parameters.
    double: computed in float64, but for what the model casts to float32."""
    rng = np.random.default_rng(seed)
    draw(model, rng)
    model.eval()  # no dropout
    model = model.double() if double else model
    batch = make_batch(rng, rows, length)
    see = torch.from_numpy(visible(batch["segments"]))
    logits = forward(
        torch.from_numpy(batch["inputs"]).long(), torch.from_numpy(batch["positions"]).long(), see
    )
    nll = F.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(batch["targets"]).long().flatten(), reduction="none"
    )
    weights = torch.from_numpy(batch["weights"]).flatten()
    loss = (nll * weights).sum() / weights.sum()
    loss.backward()
    with torch.no_grad():
        if separate:
            check_separate_documents(forward, rows, batch, logits)
    arrays = dict(
        batch,
        config=np.array(json.dumps(config)),
        logits=logits.detach().numpy(),
        loss=loss.detach().numpy(),
    )
    for key, p in model.named_parameters():
        key = rename(key)
        arrays[f"params/{key}"], arrays[f"grads/{key}"] = p.detach().numpy(), p.grad.numpy()
    arrays = {k: np.float32(x) if x.dtype == np.float64 else x for k, x in arrays.items()}
    path = HERE / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(
        f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, loss {loss.item():.4f}, "
        f"logits std {logits.std().item():.2f}"
    )


def make_gpt2():
    config = dict(
        vocab_size=VOCAB,
        n_positions=MAX_LEN,
        n_embd=24,
        n_layer=3,
        n_head=4,
        layer_norm_epsilon=1e-5,
    )
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **config,
            activation_function="gelu_new",
            attn_implementation="eager",
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    freeze("gpt2", config, model, hugging_face(model), seed=1)


def make_llama(name, seed, theta, rows=ROWS, length=T, **config):
    config = dict(
        vocab_size=VOCAB,
        max_position_embeddings=max(length, MAX_LEN),
        num_attention_heads=4,
        **config,
    )
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **config,
            rope_parameters=dict(rope_type="default", rope_theta=theta),
            hidden_act="silu",
            attention_bias=False,
            mlp_bias=False,
            attn_implementation="eager",
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    freeze(name, dict(config, rope_theta=theta), model, hugging_face(model), seed, rows, length)


def make_palm():
    config = dict(d=24, heads=3, head_dim=10, d_ff=40, layers=2, eps=1e-6, theta=10000.0)
    model = Palm(**config)
    freeze("palm", config, model, model, seed=4)


if __name__ == "__main__":
    torch.set_num_threads(1)  # fixes the order of sums, so that the files are reproducible
    make_gpt2()
    # Llama 1 and 2: theta 1e4, a separate output layer; epsilon 1e-6 in Llama 1.
    make_llama(
        "llama",
        2,
        1e4,
        hidden_size=32,
        num_hidden_layers=3,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=44,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    # Llama 3.2: theta 5e5, epsilon 1e-5, tied; n_heads * head_dim > d_model, as in some models.
    make_llama(
        "llama3",
        3,
        5e5,
        LONG_ROWS,
        LONG_T,
        hidden_size=24,
        num_hidden_layers=2,
        num_key_value_heads=2,
        head_dim=10,
        intermediate_size=40,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    make_palm()
