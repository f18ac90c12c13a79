"""Freezes losses and gradients of preferences by TRL for test_preference.py. Run by hand:

    python tests/parity/check_preference.py     # needs PyTorch, transformers, TRL 1.16

TRL's own trainers compute the losses of a small Llama with another one as the reference, and
PyTorch their gradients for the parameters. Writes preference.npz. Conservative DPO, which TRL's
'sigmoid' no longer has, is its 'aot_unpaired' of one pair at a time.
"""

import collections
import pathlib
import types

import numpy as np
import torch
import transformers as hf
import trl
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.utils import add_fused_lm_head

FROZEN = pathlib.Path(__file__).parent / "preference.npz"
VOCAB, T, B, PAD = 24, 10, 4, 0
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


def llama(cls=hf.LlamaForCausalLM, **options):
    c = hf.LlamaConfig(
        vocab_size=VOCAB, max_position_embeddings=16, hidden_size=8, intermediate_size=12,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, pad_token_id=PAD,
        initializer_range=0.6, architectures=["LlamaForCausalLM"], **options,
    )  # fmt: skip
    return cls(c)


def rows(rng, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids [n, T] after which is padding, lengths [n], how many of them are the prompt [n])."""
    lengths, prompts = rng.integers(5, T + 1, n), rng.integers(2, 4, n)
    lengths[0] = T
    ids = np.where(np.arange(T) < lengths[:, None], rng.integers(1, VOCAB, (n, T)), PAD)
    return ids, lengths, prompts


def completion_mask(ids, lengths, prompts) -> np.ndarray:
    at = np.arange(T)
    return ((at >= prompts[:, None]) & (at < lengths[:, None])).astype(np.int64)


class Accelerator:
    device = torch.device("cpu")
    gather = gather_for_metrics = staticmethod(lambda x: x)


def stub(**fields):
    metrics = {"train": collections.defaultdict(list), "eval": collections.defaultdict(list)}
    every = dict(
        accelerator=Accelerator, aux_loss_enabled=False, _metrics=metrics, _total_train_tokens=0,
        _tp_size=1, ref_model=None, use_weighting=False, is_encoder_decoder=False,
    )  # fmt: skip
    return types.SimpleNamespace(**every, **fields)


def dpo(model, reference, batch, losses, weights=None, **options):
    own = stub(
        loss_types=losses, loss_weights=weights or [1.0] * len(losses), ld_alpha=None, model=model,
        precompute_ref_logps=False, f_divergence_type="reverse_kl", args=None,
        **{"beta": 0.1, "label_smoothing": 0.0, **options},
    )  # fmt: skip
    own.ref_model = reference
    own.args = types.SimpleNamespace(gradient_checkpointing_kwargs=None)
    ids, lengths, prompts = batch
    inputs = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor((np.arange(T) < lengths[:, None]).astype(np.int64)),
        "completion_mask": torch.tensor(completion_mask(ids, lengths, prompts)),
    }
    return DPOTrainer._compute_loss(own, model, inputs, False)


def conservative(model, reference, batch, **options):
    """The mean over pairs of a loss that sorts pairs, of which there is one at a time."""
    total = 0.0
    for i in range(B):
        one = tuple(x[[i, B + i]] for x in batch)
        total = total + dpo(model, reference, one, ["aot_unpaired"], **options)
    return total / B


def kto(model, reference, batch, others, labels, **options):
    own = stub(
        model=model, calculate_KL=True, loss_type="kto", precompute_ref_logps=False,
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None), **options,
    )  # fmt: skip
    own.ref_model = reference
    own._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(own, model, batch)
    inputs = {"label": torch.tensor(labels)}
    for prefix, part in (("", batch), ("KL_", others)):
        ids, lengths, prompts = part
        mask = (np.arange(T) < lengths[:, None]).astype(np.int64)
        inputs[f"{prefix}input_ids"] = torch.tensor(ids)
        inputs[f"{prefix}attention_mask"] = torch.tensor(mask)
        inputs[f"{prefix}completion_mask"] = torch.tensor(completion_mask(*part))
    loss = KTOTrainer._compute_loss(own, model, inputs, False)
    print(f"  kl: {own._metrics['train']['kl'][0]:.4f}")
    return loss


def without_reference(cls, model, batch, **options):
    own = stub(padding_value=PAD, pad_token_id=PAD, alpha=0.0, **options)
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(cls, name):
            setattr(own, name, types.MethodType(getattr(cls, name), own))
    own.concatenated_inputs, own.get_batch_logps = cls.concatenated_inputs, cls.get_batch_logps
    ids, lengths, prompts = batch
    mask = (np.arange(T) < lengths[:, None]).astype(np.int64)
    labels = np.where(completion_mask(*batch) > 0, ids, -100)
    inputs = {
        f"{side}_{name}": torch.tensor(x[part])
        for side, part in (("chosen", slice(0, B)), ("rejected", slice(B, None)))
        for name, x in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))
    }
    return cls.get_batch_loss_metrics(own, model, inputs)[0]


def reward(model, batch, margin, center: float):
    ids, lengths, _ = batch
    own = stub(model=model, args=types.SimpleNamespace(center_rewards_coefficient=center))
    inputs = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor((np.arange(T) < lengths[:, None]).astype(np.int64)),
        "margin": torch.tensor(margin),
    }
    return RewardTrainer.compute_loss(own, model, inputs)


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    policy, reference = llama().train(), llama().train()
    scored = llama(hf.LlamaForSequenceClassification, num_labels=1).train()
    scored.model.load_state_dict(policy.model.state_dict())
    for model in (policy, reference):
        add_fused_lm_head(model, outputs=OUTPUTS)
    pairs = rows(rng, 2 * B)
    pairs[2][B:] = pairs[2][:B]  # prompts of a pair are as long
    ratings, others = rows(rng, B), rows(rng, B)
    labels, margin = [True, False, False, True], np.array([0.0, 0.5, 1.0, 0.25], np.float32)
    weights = dict(desirable_weight=1.5, undesirable_weight=0.7)
    r, rated = reference, (ratings, others, labels)
    cases = {
        "sigmoid": lambda: dpo(policy, r, pairs, ["sigmoid"]),
        "conservative": lambda: conservative(policy, r, pairs, label_smoothing=0.1),
        "nll": lambda: dpo(policy, r, pairs, ["sigmoid", "sft"], [1.0, 0.5]),
        "robust": lambda: dpo(policy, r, pairs, ["robust"], label_smoothing=0.2),
        "ipo": lambda: dpo(policy, r, pairs, ["ipo"], beta=0.4),
        "hinge": lambda: dpo(policy, r, pairs, ["hinge"]),
        "orpo": lambda: without_reference(ORPOTrainer, policy, pairs, beta=0.3),
        "simpo": lambda: without_reference(
            CPOTrainer, policy, pairs, beta=2.0, loss_type="simpo", simpo_gamma=0.6,
            label_smoothing=0.1, cpo_alpha=0.5,
        ),
        "kto": lambda: kto(policy, r, *rated, beta=0.1, **weights),
        "kto_reversed": lambda: kto(r, policy, *rated, beta=0.1, **weights),
        "reward": lambda: reward(scored, pairs, margin, 0.05),
    }  # fmt: skip
    arrays = {}
    for name, x in {"policy": policy, "reference": reference}.items():
        arrays |= {f"{name}/{k}": v.detach().numpy() for k, v in x.named_parameters()}
    arrays["score.weight"] = scored.score.weight.detach().numpy().copy()
    for name, values in {"pairs": pairs, "ratings": ratings, "others": others}.items():
        keys = ("ids", "lengths", "prompts")
        arrays |= {f"{name}/{k}": x for k, x in zip(keys, values, strict=True)}
    arrays |= {"labels": np.array(labels), "margin": margin}
    for name, compute in cases.items():
        for model in (policy, reference, scored):
            model.zero_grad(set_to_none=True)
        loss = compute()
        loss.backward()
        trained = {"reward": scored, "kto_reversed": reference}.get(name, policy)
        arrays[f"{name}/loss"] = np.float32(loss.item())
        for key, x in trained.named_parameters():
            arrays[f"{name}/grad/{key}"] = x.grad.numpy().copy()
        print(f"{name:13s} {loss.item():.6f}")
    np.savez_compressed(FROZEN, config=policy.config.to_json_string(), **arrays)
    print(f"Wrote {FROZEN}: {FROZEN.stat().st_size:,} bytes; TRL {trl.__version__}")


if __name__ == "__main__":
    main()
