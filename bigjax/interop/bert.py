"""BERT: tensors of transformers' BertModel and its heads, and those of bigjax.models.bert."""

from collections.abc import Mapping
from typing import Any

from bigjax.interop import labels
from bigjax.interop.mapping import (
    Architecture,
    Family,
    choice,
    dense,
    needs_division,
    norm,
    number,
    plain,
    refuse,
)

_FIELDS = (
    number("vocab_size", "vocab_size", 30522),
    number("max_len", "max_position_embeddings", 512),
    number("n_types", "type_vocab_size", 2),
    number("d_model", "hidden_size", 768),
    number("n_layers", "num_hidden_layers", 12),
    number("n_heads", "num_attention_heads", 12),
    number("d_ff", "intermediate_size", 3072),
    choice(
        "activation",
        "hidden_act",
        "gelu",
        {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"},
    ),
    number("norm_eps", "layer_norm_eps", 1e-12),
    number("dropout", "hidden_dropout_prob", 0.1),
    number("attention_dropout", "attention_probs_dropout_prob", 0.1),
)


def _body(m: dict) -> list:
    needs_division(m, "hidden_size", "num_attention_heads")
    d, heads = m["d_model"], (m["n_heads"], m["d_model"] // m["n_heads"])
    at = "bert.embeddings"
    out = [
        *plain("embed/embedding", f"{at}.word_embeddings.weight", m["vocab_size"], d),
        *plain("position/embedding", f"{at}.position_embeddings.weight", m["max_len"], d),
        *plain("token_type/embedding", f"{at}.token_type_embeddings.weight", m["n_types"], d),
        *norm("embed_norm", f"{at}.LayerNorm", d),
    ]
    for i in range(m["n_layers"]):
        ours, theirs = f"stack/layer_{i}", f"bert.encoder.layer.{i}"
        for x in ("query", "key", "value"):
            out += dense(f"{ours}/attention/{x}", f"{theirs}.attention.self.{x}", d, heads)
        out += [
            *dense(f"{ours}/attention/out", f"{theirs}.attention.output.dense", heads, d),
            *norm(f"{ours}/norm_1", f"{theirs}.attention.output.LayerNorm", d),
            *dense(f"{ours}/mlp/up", f"{theirs}.intermediate.dense", d, m["d_ff"]),
            *dense(f"{ours}/mlp/down", f"{theirs}.output.dense", m["d_ff"], d),
            *norm(f"{ours}/norm_2", f"{theirs}.output.LayerNorm", d),
        ]
    return out


def _heads(m: dict, n_labels: int) -> dict:
    d = m["d_model"]
    return {
        "pooler": dense("pooler", "bert.pooler.dense", d, d),
        "mlm": [
            *plain("mlm/bias", "cls.predictions.bias", m["vocab_size"]),
            *dense("mlm/dense", "cls.predictions.transform.dense", d, d),
            *norm("mlm/norm", "cls.predictions.transform.LayerNorm", d),
        ],
        "nsp": dense("nsp", "cls.seq_relationship", d, 2),
        "classifier": dense("classifier", "classifier", d, n_labels),
        "tagger": dense("tagger", "classifier", d, n_labels),
        "span": dense("span", "qa_outputs", d, 2),
    }


def _check(config: dict) -> None:
    refuse(
        config,
        {
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
        },
    )
    refuse(
        config,
        {"tie_word_embeddings": (True,)},
        "The output layer of bigjax's BERT is the token embedding.",
    )


def _notes(config: dict) -> list[str]:
    own = config.get("classifier_dropout")
    if own is None or own == config.get("hidden_dropout_prob", 0.1):
        return []
    return [f"classifier_dropout={own} is not supported: the head's dropout is model.dropout"]


def _export_notes(architecture: str, task: Mapping[str, Any]) -> list[str]:
    if architecture != "BertForPreTraining" or task.get("pairs") != "sop":
        return []
    return [
        "the pair classifier predicts the order of the two texts (pairs='sop'), not whether the "
        "second follows the first, as transformers documents it"
    ]


_TASK = {"name": "mlm_nsp"}
FAMILY = Family(
    name="bert",
    fields=_FIELDS,
    prefix="bert.",
    architectures={
        "BertForPreTraining": Architecture(
            ("pooler", "mlm", "nsp"), {**_TASK, "pairs": "nsp"}, marker="nsp"
        ),
        "BertForMaskedLM": Architecture(("mlm",), {**_TASK, "pairs": "none"}, marker="mlm"),
        "BertModel": Architecture(("pooler",), {**_TASK, "pairs": "none"}, bare=True),
        "BertForSequenceClassification": Architecture(
            ("pooler", "classifier"),
            {"name": "classify"},
            marker="classifier",
            labels=labels.named_with_kind("classifier/bias"),
        ),
        "BertForTokenClassification": Architecture(
            ("tagger",), {"name": "tag"}, marker="tagger", labels=labels.named("tagger/bias")
        ),
        "BertForQuestionAnswering": Architecture(("span",), {"name": "answer"}, marker="span"),
    },
    body=_body,
    heads=_heads,
    tied=lambda m: {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    redundant=r"bert\.embeddings\.(position_ids|token_type_ids)$",
    head_names=r"(cls|classifier|qa_outputs)\.",
    check=_check,
    notes=_notes,
    new_config=lambda m: {"tie_word_embeddings": True},
    extra=("pooler", "mlm", "nsp"),
    special_tokens=("pad",),
    export_notes=_export_notes,
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
)
