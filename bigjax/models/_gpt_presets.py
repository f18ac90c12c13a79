"""Sizes of published decoders, for bigjax.models.gpt."""


def _gpt(n_layers, d_model, n_heads, max_len=2048, **more):
    return dict(n_layers=n_layers, d_model=d_model, n_heads=n_heads, max_len=max_len, **more)


_LLAMA = dict(
    vocab_size=32000,
    position="rotary",
    norm="rmsnorm",
    activation="swiglu",
    bias=False,
    tie_embeddings=False,
)
_PALM = dict(
    vocab_size=256000,
    position="rotary",
    activation="swiglu",
    bias=False,
    head_dim=256,
    n_kv_heads=1,
    parallel_block=True,
)

# GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; sizes and
# counts as of the published weights. GPT-3, Llama 2, PaLM:
# https://arxiv.org/abs/2005.14165: the counts of its table D.1 fix two sizes that its table 2.1
# prints otherwise: 16 heads (not 24) in 1.3B, width 5120 (not 5140) in 13B.
# https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2204.02311
PRESETS = {
    "gpt2-124m": _gpt(12, 768, 12, 1024),
    "gpt2-355m": _gpt(24, 1024, 16, 1024),
    "gpt2-774m": _gpt(36, 1280, 20, 1024),
    "gpt2-1.5b": _gpt(48, 1600, 25, 1024),
    "gpt3-125m": _gpt(12, 768, 12, 2048),
    "gpt3-350m": _gpt(24, 1024, 16, 2048),
    "gpt3-760m": _gpt(24, 1536, 16, 2048),
    "gpt3-1.3b": _gpt(24, 2048, 16, 2048),
    "gpt3-2.7b": _gpt(32, 2560, 32, 2048),
    "gpt3-6.7b": _gpt(32, 4096, 32, 2048),
    "gpt3-13b": _gpt(40, 5120, 40, 2048),
    "gpt3-175b": _gpt(96, 12288, 96, 2048),
    "llama2-7b": _gpt(32, 4096, 32, 4096, d_ff=11008, **_LLAMA),
    "llama2-70b": _gpt(80, 8192, 64, 4096, d_ff=28672, n_kv_heads=8, **_LLAMA),
    "palm-8b": _gpt(32, 4096, 16, d_ff=16384, **_PALM),
    "palm-62b": _gpt(64, 8192, 32, d_ff=32768, **_PALM),
    "palm-540b": _gpt(118, 18432, 48, d_ff=73728, **_PALM),
}
