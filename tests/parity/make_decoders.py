"""Freezes reference numerics of transformers' decoders for test_decoders.py.

    python tests/parity/make_decoders.py [NAME ...]  # needs PyTorch, transformers; not bigjax

writes decoder_NAME.npz beside itself, as make_gpt.py does; config is the complete config.json, and
names are those of the files that transformers writes. Computed in float64, since the rounding of
float32 reaches 3e-5 in the seven layers of Gemma 3. Made with torch 2.13.0 (CPU) and transformers
5.24.0.
"""

import json
import sys

from make_gpt import VOCAB, T, freeze
import torch
import transformers

WINDOW = 5  # shorter than the rows
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
GROUPED = dict(SIZES, num_attention_heads=4, num_key_value_heads=2)
GEMMA = dict(GROUPED, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=10)
LONGROPE = dict(rope_type="longrope", short_factor=[1.0, 1.5], long_factor=[2.0, 6.0])
PHI = dict(SIZES, num_key_value_heads=1, partial_rotary_factor=0.5)
# name: (class, its config)
CASES = {
    "llama31": (
        "LlamaForCausalLM",
        dict(
            GROUPED,
            head_dim=8,
            tie_word_embeddings=True,
            rope_parameters=dict(  # of four frequencies one stays and one is between
                rope_type="llama3",
                rope_theta=10000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "mistral": ("MistralForCausalLM", dict(GROUPED, sliding_window=WINDOW)),
    "qwen2": ("Qwen2ForCausalLM", dict(GROUPED, tie_word_embeddings=True)),
    "qwen3": (
        "Qwen3ForCausalLM",
        dict(
            GROUPED,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=0,
        ),
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        dict(
            GEMMA,
            num_hidden_layers=3,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        dict(
            GEMMA,
            num_hidden_layers=7,
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=100.0),
                full_attention=dict(rope_type="linear", rope_theta=10000.0, factor=4.0),
            ),
        ),
    ),
    "phi3": (
        "Phi3ForCausalLM",
        dict(PHI, rope_parameters=LONGROPE, original_max_position_embeddings=24),
    ),
    "phi3_long": (
        "Phi3ForCausalLM",
        dict(
            PHI,
            sliding_window=WINDOW,
            rope_parameters=LONGROPE,
            original_max_position_embeddings=16,
        ),
    ),
    "olmo2": ("Olmo2ForCausalLM", dict(GROUPED)),
    "gpt_neox": ("GPTNeoXForCausalLM", dict(SIZES)),
    "gpt_neox_sequential": (
        "GPTNeoXForCausalLM",
        dict(SIZES, use_parallel_residual=False, rotary_pct=0.5),
    ),
}


def forward_of(model):
    """forward(inputs, positions, visible or None) -> logits; without visible, transformers makes
    the masks, windows too."""
    config = model.config
    per_layer = getattr(config, "layer_types", None)

    def additive(see):
        return torch.zeros(see.shape).masked_fill(~see, torch.finfo(torch.float32).min)[:, None]

    def forward(inputs, positions, see):
        mask = None
        if see is not None:
            t = torch.arange(see.shape[-1])
            near = see & (t[:, None] - t < (getattr(config, "sliding_window", None) or len(t)))
            if per_layer:
                mask = dict(full_attention=additive(see), sliding_attention=additive(near))
            else:
                mask = additive(near)
        return model(
            input_ids=inputs, position_ids=positions, attention_mask=mask, use_cache=False
        ).logits

    return forward


def main(names):
    torch.set_num_threads(1)  # fixes the order of sums, so that the files are reproducible
    transformers.logging.set_verbosity_error()
    for seed, (name, (cls, options)) in enumerate(CASES.items(), start=11):
        if names and name not in names:
            continue
        model_class = getattr(transformers, cls)
        config = model_class.config_class(**options, attn_implementation="eager")
        model = model_class(config)
        stored = json.loads(json.dumps({**config.to_dict(), "architectures": [cls]}))
        # A document alone is shorter than the rows, for which transformers has other frequencies.
        alone = name != "phi3_long"
        rename = lambda key: key.replace("lm_head", "embed_out") if "NeoX" in cls else key
        freeze(
            f"decoder_{name}",
            stored,
            model,
            forward_of(model),
            seed,
            separate=alone,
            rename=rename,
            double=True,
        )
        assert T < 24, "rows of the case phi3 have the short factors"


if __name__ == "__main__":
    main(sys.argv[1:])
