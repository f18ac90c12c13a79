"""Folders written by older or other programs: an export of the unchanged import gives the same
bytes; an export of trained parameters has today's layout."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax import interop
from bigjax.data import load_tokenizer
from bigjax.errors import UserError
from bigjax.interop import origin, storage
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.train import export_model, import_model, init_from
from bigjax.train import load as load_lib
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import State
from tests.e2e.test_import_export import assert_same_files
from tests.unit.test_interop import assert_same, stored, write_folder

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
KEPT = {"pooler/kernel", "pooler/bias", "nsp/kernel", "nsp/bias"}


def published_bert(folder):
    """As bert-base-uncased: it has a pooler and a pair head that its class does not have."""
    config, theirs, _ = stored("BertForPreTraining")
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for k, x in theirs.items()
    }
    old |= {
        "bert.embeddings.position_ids": np.arange(32)[None],
        "cls.predictions.decoder.weight": theirs["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": theirs["cls.predictions.bias"],
    }
    return write_folder(folder, {**config, "architectures": ["BertForMaskedLM"]}, old)


def published_gpt2(folder):
    """As gpt2: no prefix, masks, a copy of the tied output layer; the header in layer order."""
    config, theirs, _ = stored("GPT2LMHeadModel")
    old = {k.removeprefix("transformer."): x for k, x in theirs.items()}
    for i in range(2):
        old |= {
            f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 9, 9), np.uint8)),
            f"h.{i}.attn.masked_bias": np.float32(-1e4),
        }
    old["lm_head.weight"] = old["wte.weight"]
    write_folder(folder, config, {})
    (folder / "config.json").write_bytes(json.dumps(config, indent=4).encode() + b"\r\n")
    header, start = {"__metadata__": {"b": "é", "a": "of another program", "format": "pt"}}, 0
    codes = {"float32": "F32", "uint8": "U8"}
    for name, x in old.items():
        header[name] = {
            "shape": x.shape,
            "dtype": codes[x.dtype.name],
            "data_offsets": [start, start + x.nbytes],
        }
        start += x.nbytes
    storage.write(
        folder / WEIGHTS,
        json.dumps(header, indent=1, ensure_ascii=False) + "   ",
        lambda name: storage.as_bytes(old[name]),
    )
    return folder


def sharded_llama(folder):
    """Two files with other names and dtypes; a tensor that the index does not list."""
    config, theirs, _ = stored("LlamaForCausalLM")
    mixed = {k: x if "norm" in k else x.astype(ml_dtypes.bfloat16) for k, x in theirs.items()}
    for i in range(2):
        mixed[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    first = {k: x for k, x in mixed.items() if "layers.1" in k}
    second = {k: x for k, x in mixed.items() if k not in first}
    write_folder(folder, config, first, "model-a.safetensors")
    save_file(
        {**second, "extra": np.ones((2, 3), np.int16)},
        folder / "model-b.safetensors",
        metadata={"format": "pt", "part": "second"},
    )
    file_of = {
        **dict.fromkeys(second, "model-b.safetensors"),
        **dict.fromkeys(first, "model-a.safetensors"),
    }
    (folder / INDEX).write_text(json.dumps({"weight_map": file_of, "metadata": {"by": "hand"}}))
    return folder


def other_types(folder):
    """A tied copy with another dtype, and one whose zeros have another sign."""
    config, theirs, _ = stored("BertForMaskedLM")
    embedding = theirs["bert.embeddings.word_embeddings.weight"].astype(np.float16)
    theirs["bert.embeddings.word_embeddings.weight"] = embedding
    theirs["cls.predictions.decoder.weight"] = embedding.astype(np.float32)
    theirs["cls.predictions.bias"][:5] = 0.0
    theirs["cls.predictions.decoder.bias"] = theirs["cls.predictions.bias"].copy()
    theirs["cls.predictions.decoder.bias"][:5] = -0.0
    theirs |= {"adapter.mask": np.ones(3, bool), "adapter.scale": np.float64(2)}
    return write_folder(folder, config, theirs)


def body_without_pooler(folder):
    config, theirs, _ = stored("BertModel")
    return write_folder(folder, config, {k: x for k, x in theirs.items() if "pooler" not in k})


# What the import reports for each.
LAYOUTS = {
    published_bert: [
        "4 not used by task 'mlm_nsp', kept for export: pooler/kernel",
        "3 copies or buffers without weights: cls.predictions.decoder.bias, "
        "cls.predictions.decoder.weight, bert.embeddings.position_ids",
    ],
    published_gpt2: ["5 copies or buffers without weights: lm_head.weight, h.0.attn.bias"],
    sharded_llama: [
        "2 copies or buffers without weights: model.layers.1",
        "1 unknown tensors, kept for export: extra",
    ],
    other_types: [
        "2 copies or buffers without weights: cls.predictions.decoder",
        "2 unknown tensors, kept for export: adapter.",
        "of several types",
    ],
    body_without_pooler: [
        "2 missing in the folder, and not needed by the task: pooler/kernel, pooler/bias"
    ],
}


def import_(folder, workdir) -> str:
    lines = []
    import_model.import_run(folder, workdir, lines.append)
    return "\n".join(lines)


def export(workdir, to, **more) -> str:
    lines = []
    export_model.export_run(workdir, to, log=lines.append, **more)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder and its import."""
    root = tmp_path_factory.mktemp("bert")
    import_(published_bert(root / "in"), root / "run")
    return root


def save_step(workdir, step: int) -> None:
    """A checkpoint as if the parameters had been trained: each is doubled."""
    params = load_lib.load(workdir, workdir_lib.read_config(workdir), None, None).params
    params = jax.tree_util.tree_map(lambda x: 2 * x, params)
    checkpoints = Checkpoints(workdir, keep=2)
    checkpoints.save(
        step,
        State(jnp.int32(step), params, (), {}, None, jnp.bool_(False)),
        {"data": "", "early_stop": {}},
        {},
    )
    checkpoints.wait()
    checkpoints.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_unchanged_import_is_exported_byte_for_byte(tmp_path, layout):
    folder = layout(tmp_path / "in")
    imported = import_(folder, tmp_path / "run")
    assert not [words for words in LAYOUTS[layout] if words not in imported], imported
    exported = export(tmp_path / "run", tmp_path / "out")
    assert_same_files(folder, tmp_path / "out")
    assert "copies or buffers" not in exported and "initialised by" not in exported.replace(
        # The head of the task, which this class does not have.
        "5 parameters not in BertModel, or initialised by the import",
        "",
    )
    assert ("unknown tensors, written unchanged" in exported) == ("unknown" in imported)


def windows_text(path) -> None:
    """Rewrites a file as Windows editors do, with a byte order mark and CRLF."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))


def test_text_files_with_a_byte_order_mark_and_crlf(tmp_path):
    """They are read, and exported byte for byte."""
    folder = published_bert(tmp_path / "in")
    n = json.loads((folder / "config.json").read_text())["vocab_size"]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(n - 5))]
    (folder / "vocab.txt").write_text("\n".join([*vocab, ""]))
    (folder / "tokenizer_config.json").write_text('{\n"do_lower_case": false\n}\n')
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        windows_text(folder / name)
    assert interop.is_huggingface(folder)
    import_(folder, tmp_path / "run")
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert tokenizer.encode("w0 w3").tolist() == [5, 8] and not tokenizer.lowercase
    export(tmp_path / "run", tmp_path / "out")
    assert_same_files(folder, tmp_path / "out")


def test_trained_parameters_are_exported_with_todays_layout(bert, tmp_path):
    workdir = shutil.copytree(bert / "run", tmp_path / "run")
    save_step(workdir, 1)
    exported = export(workdir, tmp_path / "out")
    assert (
        "4 imported tensors that were not trained with the others, not exported: pooler" in exported
    )
    assert "3 copies or buffers without weights, not exported" in exported
    _, theirs, _ = stored("BertForMaskedLM")
    assert_same(load_file(tmp_path / "out" / WEIGHTS), {k: 2 * x for k, x in theirs.items()})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", WEIGHTS]
    export(workdir, tmp_path / "first", step=0)
    assert_same_files(bert / "in", tmp_path / "first")


def test_a_trained_model_from_shards_is_exported_as_one_file(tmp_path):
    import_(sharded_llama(tmp_path / "in"), tmp_path / "run")
    save_step(tmp_path / "run", 1)
    exported = export(tmp_path / "run", tmp_path / "out")
    assert (
        "1 imported tensors that were not trained with the others, not exported: extra" in exported
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", WEIGHTS]
    assert load_file(tmp_path / "out" / WEIGHTS).keys() == stored("LlamaForCausalLM")[1].keys()


def test_another_dtype_or_other_shards_drop_only_copies_and_buffers(bert, tmp_path):
    _, theirs, _ = stored("BertForPreTraining")
    exported = export(bert / "run", tmp_path / "half", dtype="bfloat16")
    assert (
        "3 copies or buffers without weights, not exported" in exported
        and "initialised" not in exported
    )
    assert_same(
        load_file(tmp_path / "half" / WEIGHTS),
        {k: x.astype(ml_dtypes.bfloat16) for k, x in theirs.items()},
    )
    export(bert / "run", tmp_path / "shards", max_shard_bytes=20_000)
    imported = interop.read(tmp_path / "shards")
    assert len(imported.layout.headers) > 1 and KEPT <= set(imported.names) and not imported.missing
    import_(other_types(tmp_path / "in"), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "wide", dtype="float32")
    written = load_file(tmp_path / "wide" / WEIGHTS)
    assert written["adapter.scale"].dtype == np.float64 and written["adapter.mask"].all()
    assert written["bert.embeddings.word_embeddings.weight"].dtype == np.float32


def test_a_changed_config_is_exported_with_the_original_tensors(bert, tmp_path):
    workdir = shutil.copytree(bert / "run", tmp_path / "run")
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["model"]["dropout"] = 0.25
    path.write_text(json.dumps(config))
    export(workdir, tmp_path / "out")
    original = json.loads((bert / "in" / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        **original,
        "hidden_dropout_prob": 0.25,
    }
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (bert / "in" / WEIGHTS).read_bytes()


def test_kept_parameters(bert, tmp_path):
    _, _, ours = stored("BertForPreTraining")
    assert_same(interop.kept_parameters(bert / "run", 0), {n: ours[n] for n in KEPT})
    assert interop.kept_parameters(str(bert / "run"), 1) == {}
    assert interop.kept_parameters(tmp_path, 0) == {}  # no import
    import_(published_gpt2(tmp_path / "in"), tmp_path / "run")
    assert interop.kept_parameters(tmp_path / "run", 0) == {}  # only buffers were kept


def test_a_run_can_start_from_the_import_or_from_its_folder_alike(bert, tmp_path):
    folder, workdir = bert / "in", bert / "run"
    sources = [init_from.open_source(str(f), str(tmp_path)) for f in (folder, workdir)]
    assert sources[0].shapes == sources[1].shapes and KEPT <= set(sources[1].shapes)
    mesh = mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    on_each_device = sharding.replicated(mesh)
    shape = sources[0].shapes["pooler/kernel"]
    fresh = {"pooler": {"kernel": jax.device_put(jnp.zeros(shape), on_each_device)}}
    with jax.set_mesh(mesh):
        got = [init_from.initialise(fresh, s, "", lambda text: None) for s in sources]
    np.testing.assert_array_equal(*[np.asarray(g["pooler"]["kernel"]) for g in got])
    assert np.asarray(got[0]["pooler"]["kernel"]).any()


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b[:20],
        lambda b: b"",
        lambda b: b"\xff" * 8 + b[8:],
        lambda b: b.replace(b"nsp/bias", b"nsp/BIAS"),
    ],
)
def test_damaged_kept_tensors(bert, tmp_path, damage):
    workdir = shutil.copytree(bert / "run", tmp_path / "run")
    path = workdir / origin.KEPT
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="huggingface.safetensors.*Import the model again"):
        export(workdir, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_work_folder_of_an_older_import(bert, tmp_path):
    """It stores no layout, so the export has today's."""
    workdir = shutil.copytree(bert / "run", tmp_path / "run")
    path = workdir / origin.ORIGIN
    origin_json = json.loads(path.read_text())
    del origin_json["layout"]
    path.write_text(json.dumps(origin_json))
    exported = export(workdir, tmp_path / "out")
    assert "4 parameters not in BertForMaskedLM" in exported
    assert_same(load_file(tmp_path / "out" / WEIGHTS), stored("BertForMaskedLM")[1])


def test_other_files_are_named(tmp_path):
    folder = published_bert(tmp_path / "in")
    (folder / "README.md").write_text("of a model")
    assert "1 other files of the folder, not imported: README.md" in import_(
        folder, tmp_path / "run"
    )


def test_a_tensor_in_two_shards(tmp_path):
    folder = sharded_llama(tmp_path / "in")
    twice = load_file(folder / "model-b.safetensors")
    twice["model.layers.1.mlp.up_proj.weight"] = np.ones(3, np.float32)
    save_file(twice, folder / "model-b.safetensors")
    with pytest.raises(UserError, match="up_proj.weight is in model-a.* and in model-b"):
        interop.read(folder)


def test_long_lists_are_abbreviated(tmp_path):
    names = [f"h.{i}.attn.{x}" for i in range(9) for x in ("bias", "masked_bias")]
    assert import_model._brief(names) == ["h.*.attn.bias", "h.*.attn.masked_bias"]
    assert import_model._brief(names[:4]) == names[:4]


def test_files_equal_those_of_the_safetensors_library(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{order}{dtype}": rng.normal(size=(3, i)).astype(dtype)
        for i, dtype in enumerate(
            (
                "float32",
                "float16",
                "int64",
                "uint8",
                "bool",
                "float64",
                "int16",
                "int32",
                ml_dtypes.bfloat16,
            )
        )
        for order in "ba"
    } | {"ü": np.array(3, np.float32)}
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    header = storage.read_header(tmp_path / "theirs")
    parts = storage.parts(header)
    mine = storage.new_header(
        [(n, p.code, p.shape, p.end - p.start) for n, p in parts.items()], storage.metadata(header)
    )
    storage.write(tmp_path / "ours", mine, lambda name: storage.as_bytes(arrays[name]))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
