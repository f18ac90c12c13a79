"""Presets of decoders equal what an import makes of the published config.json.

These have the published keys that matter to the model, most of them as transformers 4 wrote them.
"""

import pytest

from bigjax.models import gpt

FAMILIES = {family.name: family for family in gpt.HUGGING_FACE}


def sizes(layers, width, heads, kv_heads, d_ff, max_len, vocab, **more):
    return dict(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=d_ff,
        max_position_embeddings=max_len,
        vocab_size=vocab,
        **more,
    )


LLAMA = dict(
    model_type="llama",
    attention_bias=False,
    attention_dropout=0.0,
    hidden_act="silu",
    mlp_bias=False,
    pretraining_tp=1,
    rms_norm_eps=1e-5,
    rope_scaling=None,
    rope_theta=500000.0,
    tie_word_embeddings=False,
)
LLAMA_32 = dict(
    LLAMA,
    rope_scaling=dict(
        factor=32.0,
        high_freq_factor=4.0,
        low_freq_factor=1.0,
        original_max_position_embeddings=8192,
        rope_type="llama3",
    ),
    tie_word_embeddings=True,
)
SMOLLM = dict(LLAMA, rope_theta=100000, rope_interleaved=False, tie_word_embeddings=True)
QWEN2 = dict(
    model_type="qwen2",
    attention_dropout=0.0,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    use_mrope=False,
    use_sliding_window=False,
)
QWEN3 = dict(
    model_type="qwen3",
    attention_bias=False,
    head_dim=128,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=None,
    use_sliding_window=False,
)
GEMMA2 = dict(
    model_type="gemma2",
    attention_bias=False,
    attn_logit_softcapping=50.0,
    cache_implementation="hybrid",
    final_logit_softcapping=30.0,
    head_dim=256,
    hidden_act="gelu_pytorch_tanh",
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    sliding_window=4096,
)
GEMMA3 = dict(
    model_type="gemma3_text",
    attention_bias=False,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    head_dim=256,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-6,
    rope_local_base_freq=10000,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=512,
    sliding_window_pattern=6,
)
PHI = dict(
    model_type="phi3",
    attention_dropout=0.0,
    embd_pdrop=0.0,
    hidden_act="silu",
    resid_pdrop=0.0,
    rms_norm_eps=1e-5,
    rope_scaling=None,
    tie_word_embeddings=False,
)
PYTHIA = dict(
    model_type="gpt_neox",
    hidden_act="gelu",
    layer_norm_eps=1e-5,
    max_position_embeddings=2048,
    rotary_emb_base=10000,
    rotary_pct=0.25,
    tie_word_embeddings=False,
    use_parallel_residual=True,
    vocab_size=50304,
)
CONFIGS = {
    "llama3-8b": {**LLAMA, **sizes(32, 4096, 32, 8, 14336, 8192, 128256)},
    "llama3.2-1b": {**LLAMA_32, **sizes(16, 2048, 32, 8, 8192, 131072, 128256, head_dim=64)},
    "llama3.2-3b": {**LLAMA_32, **sizes(28, 3072, 24, 8, 8192, 131072, 128256, head_dim=128)},
    "smollm2-135m": {**SMOLLM, **sizes(30, 576, 9, 3, 1536, 8192, 49152)},
    "smollm2-360m": {**SMOLLM, **sizes(32, 960, 15, 5, 2560, 8192, 49152)},
    "mistral-7b": dict(
        sizes(32, 4096, 32, 8, 14336, 32768, 32000),
        model_type="mistral",
        hidden_act="silu",
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        sliding_window=4096,
        tie_word_embeddings=False,
    ),
    "qwen2.5-0.5b": dict(
        {**QWEN2, **sizes(24, 896, 14, 2, 4864, 32768, 151936)},
        max_window_layers=24,
        sliding_window=32768,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": dict(
        {**QWEN2, **sizes(28, 3584, 28, 4, 18944, 131072, 152064)},
        max_window_layers=28,
        sliding_window=131072,
        tie_word_embeddings=False,
    ),
    "qwen3-0.6b": dict(
        {**QWEN3, **sizes(28, 1024, 16, 8, 3072, 40960, 151936)},
        max_window_layers=28,
        tie_word_embeddings=True,
    ),
    "qwen3-8b": dict(
        {**QWEN3, **sizes(36, 4096, 32, 8, 12288, 40960, 151936)},
        max_window_layers=36,
        tie_word_embeddings=False,
    ),
    "gemma2-2b": {**GEMMA2, **sizes(26, 2304, 8, 4, 9216, 8192, 256000)},
    "gemma2-9b": {**GEMMA2, **sizes(42, 3584, 16, 8, 14336, 8192, 256000)},
    "gemma3-1b": {**GEMMA3, **sizes(26, 1152, 4, 1, 6912, 32768, 262144)},
    "gemma3-4b": dict(  # text_config of the published model, with the values that it omits
        {**GEMMA3, **sizes(34, 2560, 8, 4, 10240, 131072, 262208)},
        rope_scaling=dict(factor=8.0, rope_type="linear"),
        sliding_window=1024,
    ),
    "phi3-mini": dict(
        {**PHI, **sizes(32, 3072, 32, 32, 8192, 4096, 32064)},
        original_max_position_embeddings=4096,
        rope_theta=10000.0,
        sliding_window=2047,
    ),
    "phi4": dict(
        {**PHI, **sizes(40, 5120, 40, 10, 17920, 16384, 100352)},
        attention_bias=False,
        original_max_position_embeddings=16384,
        rope_theta=250000,
        sliding_window=None,
    ),
    "olmo2-7b": dict(
        sizes(32, 4096, 32, 32, 11008, 4096, 100352),
        model_type="olmo2",
        attention_bias=False,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        rope_scaling=None,
        rope_theta=500000,
        tie_word_embeddings=False,
    ),
    "pythia-160m": dict(
        PYTHIA,
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_hidden_layers=12,
    ),
    "pythia-1.4b": dict(
        PYTHIA,
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=16,
        num_hidden_layers=24,
    ),
}


@pytest.mark.parametrize("preset", CONFIGS)
def test_a_preset_is_what_an_import_gives(preset):
    config = CONFIGS[preset]
    family = FAMILIES[config["model_type"]]
    fields = family.model_fields(config)
    assert gpt.Config(**fields) == gpt.Config(**gpt.PRESETS[preset])
    assert not family.notes(config)
    assert family.put_fields(fields, config) == config
    # What an export of such a model from scratch writes describes the same model.
    assert family.model_fields(family.put_fields(fields, None)) == fields
