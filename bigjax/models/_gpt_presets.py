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
_LLAMA_3 = dict(_LLAMA, vocab_size=128256, rope_theta=500000.0)
_LLAMA_3_LONG = dict(
    _LLAMA_3,
    rope_scaling="llama3",
    rope_original_len=8192,
    rope_low_factor=1.0,
    rope_high_factor=4.0,
)
_SMOLLM_2 = dict(_LLAMA, vocab_size=49152, rope_theta=100000.0, tie_embeddings=True)
_QWEN = dict(_LLAMA, vocab_size=151936, rope_theta=1e6, norm_eps=1e-6)
_QWEN_2 = dict(_QWEN, qkv_bias=True)
_QWEN_3 = dict(_QWEN, qk_norm="head", head_dim=128, n_kv_heads=8)
_GEMMA = dict(
    position="rotary",
    norm="rmsnorm",
    norm_eps=1e-6,
    norm_place="both",
    norm_offset=True,
    activation="geglu",
    bias=False,
    embed_scale=True,
    head_dim=256,
    query_scale=1 / 16,
)
_GEMMA_2 = dict(
    _GEMMA,
    vocab_size=256000,
    window=4096,
    global_every=2,
    attention_softcap=50.0,
    logit_softcap=30.0,
)
_GEMMA_3 = dict(_GEMMA, qk_norm="head", global_every=6, rope_theta=1e6, local_rope_theta=10000.0)
_OLMO_2 = dict(
    _LLAMA,
    vocab_size=100352,
    rope_theta=500000.0,
    norm_eps=1e-6,
    norm_place="post",
    qk_norm="width",
)
_PYTHIA = dict(
    vocab_size=50304,
    position="rotary",
    rope_share=0.25,
    activation="gelu_exact",
    parallel_block=True,
    parallel_norm=True,
    tie_embeddings=False,
)

# GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; sizes and
# counts as of the published weights. GPT-3, Llama 2, PaLM:
# https://arxiv.org/abs/2005.14165: the counts of its table D.1 fix two sizes that its table 2.1
# prints otherwise: 16 heads (not 24) in 1.3B, width 5120 (not 5140) in 13B.
# https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2204.02311
# The others have the sizes and the counts of their published weights; Llama 3 to 3.2:
# https://arxiv.org/abs/2407.21783; SmolLM2: https://arxiv.org/abs/2502.02737; Mistral 7B v0.1:
# https://arxiv.org/abs/2310.06825; Qwen: https://arxiv.org/abs/2412.15115 and
# https://arxiv.org/abs/2505.09388; Gemma: https://arxiv.org/abs/2408.00118 and
# https://arxiv.org/abs/2503.19786, of whose 4B without the images; Phi-3-mini for 4,096 tokens and
# Phi-4: https://arxiv.org/abs/2404.14219 and https://arxiv.org/abs/2412.08905; OLMo 2:
# https://arxiv.org/abs/2501.00656; Pythia: https://arxiv.org/abs/2304.01373
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
    "llama3-8b": _gpt(32, 4096, 32, 8192, d_ff=14336, n_kv_heads=8, **_LLAMA_3),
    "llama3-70b": _gpt(80, 8192, 64, 8192, d_ff=28672, n_kv_heads=8, **_LLAMA_3),
    "llama3.1-8b": _gpt(
        *(32, 4096, 32, 131072), d_ff=14336, n_kv_heads=8, rope_factor=8.0, **_LLAMA_3_LONG
    ),
    "llama3.1-70b": _gpt(
        *(80, 8192, 64, 131072), d_ff=28672, n_kv_heads=8, rope_factor=8.0, **_LLAMA_3_LONG
    ),
    "llama3.2-1b": _gpt(
        *(16, 2048, 32, 131072),
        d_ff=8192,
        n_kv_heads=8,
        **(_LLAMA_3_LONG | dict(rope_factor=32.0, tie_embeddings=True)),
    ),
    "llama3.2-3b": _gpt(
        *(28, 3072, 24, 131072),
        d_ff=8192,
        n_kv_heads=8,
        **(_LLAMA_3_LONG | dict(rope_factor=32.0, tie_embeddings=True)),
    ),
    "smollm2-135m": _gpt(30, 576, 9, 8192, d_ff=1536, n_kv_heads=3, **_SMOLLM_2),
    "smollm2-360m": _gpt(32, 960, 15, 8192, d_ff=2560, n_kv_heads=5, **_SMOLLM_2),
    "mistral-7b": _gpt(32, 4096, 32, 32768, d_ff=14336, n_kv_heads=8, window=4096, **_LLAMA),
    "qwen2.5-0.5b": _gpt(
        *(24, 896, 14, 32768), d_ff=4864, n_kv_heads=2, **(_QWEN_2 | dict(tie_embeddings=True))
    ),
    "qwen2.5-7b": _gpt(
        *(28, 3584, 28, 131072), d_ff=18944, n_kv_heads=4, **(_QWEN_2 | dict(vocab_size=152064))
    ),
    "qwen3-0.6b": _gpt(28, 1024, 16, 40960, d_ff=3072, **(_QWEN_3 | dict(tie_embeddings=True))),
    "qwen3-8b": _gpt(36, 4096, 32, 40960, d_ff=12288, **_QWEN_3),
    "gemma2-2b": _gpt(26, 2304, 8, 8192, d_ff=9216, n_kv_heads=4, **_GEMMA_2),
    "gemma2-9b": _gpt(42, 3584, 16, 8192, d_ff=14336, n_kv_heads=8, **_GEMMA_2),
    "gemma3-1b": _gpt(
        *(26, 1152, 4, 32768), d_ff=6912, n_kv_heads=1, window=512, vocab_size=262144, **_GEMMA_3
    ),
    "gemma3-4b": _gpt(
        *(34, 2560, 8, 131072),
        d_ff=10240,
        n_kv_heads=4,
        window=1024,
        vocab_size=262208,
        rope_scaling="linear",
        rope_factor=8.0,
        **_GEMMA_3,
    ),
    "phi3-mini": _gpt(
        32, 3072, 32, 4096, d_ff=8192, window=2047, **(_LLAMA | dict(vocab_size=32064))
    ),
    "phi4": _gpt(
        *(40, 5120, 40, 16384),
        d_ff=17920,
        n_kv_heads=10,
        **(_LLAMA | dict(vocab_size=100352, rope_theta=250000.0)),
    ),
    "olmo2-7b": _gpt(32, 4096, 32, 4096, d_ff=11008, **_OLMO_2),
    "pythia-160m": _gpt(12, 768, 12, 2048, **_PYTHIA),
    "pythia-1.4b": _gpt(24, 2048, 16, 2048, **_PYTHIA),
    "palm-8b": _gpt(32, 4096, 16, d_ff=16384, **_PALM),
    "palm-62b": _gpt(64, 8192, 32, d_ff=32768, **_PALM),
    "palm-540b": _gpt(118, 18432, 48, d_ff=73728, **_PALM),
}
