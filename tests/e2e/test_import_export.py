"""`bigjax import` and `bigjax export`: a folder goes in, works as a run, and comes out the same."""

import filecmp
import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax import config as config_lib
from bigjax import data, interop, main
from bigjax.data.tokenizers.bpe import byte_characters
from bigjax.interop.origin import ORIGIN
from bigjax.layers.params import unstack_layers
from bigjax.train import export_model, import_model
from bigjax.train import load as load_lib
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import State
from tests import helpers
from tests.helpers import bigjax
from tests.parity import test_gpt
from tests.unit.test_interop import stored, write_folder

D, F, VOCAB, LENGTH = 16, 24, 261, 64
CONFIG = dict(
    model_type="gpt2",
    architectures=["GPT2LMHeadModel"],
    vocab_size=VOCAB,
    n_embd=D,
    n_head=2,
    n_layer=2,
    n_positions=LENGTH,
    n_inner=F,
    attn_pdrop=0.1,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    bos_token_id=257,
    eos_token_id=257,
    dtype="float32",
    my_key=[1, 2],
)


pytestmark = pytest.mark.usefixtures("one_device")


def gpt2_tensors(dtype=np.float32) -> dict:
    shapes = {
        "wte.weight": (VOCAB, D),
        "wpe.weight": (LENGTH, D),
        "ln_f.weight": (D,),
        "ln_f.bias": (D,),
    }
    for i in range(2):
        layer = {
            "ln_1.weight": (D,),
            "ln_1.bias": (D,),
            "ln_2.weight": (D,),
            "ln_2.bias": (D,),
            "attn.c_attn.weight": (D, 3 * D),
            "attn.c_attn.bias": (3 * D,),
            "attn.c_proj.weight": (D, D),
            "attn.c_proj.bias": (D,),
            "mlp.c_fc.weight": (D, F),
            "mlp.c_fc.bias": (F,),
            "mlp.c_proj.weight": (F, D),
            "mlp.c_proj.bias": (D,),
        }
        shapes |= {f"h.{i}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(0)
    return {
        f"transformer.{name}": rng.normal(0, 0.3, shape).astype(dtype)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder as transformers 5 writes it: of the tokenizer only tokenizer.json."""
    folder = write_folder(tmp_path_factory.mktemp("in") / "gpt2", CONFIG, gpt2_tensors())
    pieces = [*byte_characters().values(), "th", "<|endoftext|>"]
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "model": {
                    "type": "BPE",
                    "vocab": {p: i for i, p in enumerate(pieces)},
                    "merges": [["t", "h"]],
                },
                "normalizer": None,
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
            }
        )
    )
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (folder / "generation_config.json").write_text('{"do_sample": true}')
    return folder


@pytest.fixture(scope="module")
def imported(gpt2, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "gpt2"
    assert main.main(["import", f"--from={gpt2}", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def copied(imported, tmp_path):
    return pathlib.Path(shutil.copytree(imported, tmp_path / "run"))


def assert_same_files(a, b):
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir())
    assert not [n for n in names if not filecmp.cmp(a / n, b / n, shallow=False)]


def test_an_imported_folder_works_and_is_exported_unchanged(
    capsys, imported, gpt2, tmp_path, corpus_file, cache_dir
):
    code, out, err = bigjax(
        capsys, "generate", f"--workdir={imported}", "--prompt=the shape", "--max_tokens=5"
    )
    assert code == 0 and out.startswith("the shape"), err
    code, out, err = bigjax(
        capsys,
        "eval",
        f"--workdir={imported}",
        "--json",
        "--config.data.seq_len=32",
        "--config.data.sources.docstrings.kind=text",
        f"--config.data.cache_dir={cache_dir}",
        f"--config.data.sources.docstrings.path={corpus_file}",
        "--config.evals.valid.batches=1",
        "--config.data.valid_fraction=0.1",
    )
    assert code == 0, err
    numbers = json.loads(out.splitlines()[-1])
    assert numbers["step"] == 0 and numbers["eval/valid/loss"] > 0
    code, out, err = bigjax(capsys, "export", f"--workdir={imported}", f"--to={tmp_path}/out")
    assert code == 0 and "as GPT2LMHeadModel" in out, err
    assert_same_files(gpt2, tmp_path / "out")


def test_output_and_files_of_an_import(capsys, gpt2, tmp_path):
    code, out, err = bigjax(capsys, "import", f"--from={gpt2}", f"--workdir={tmp_path}/run")
    assert code == 0, err
    n = sum(x.size for x in gpt2_tensors().values())
    assert f"{n:,} parameters" in out and "36 loaded" in out and "attn_pdrop=0.1" in out
    assert "new" not in out and "unknown" not in out
    config = workdir_lib.read_config(tmp_path / "run")
    assert config.model.d_ff == F and config.model.scan and config.data.tokenizer.kind == "bpe"
    assert config.data.tokenizer.path == str(tmp_path / "run" / "tokenizer")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    meta = Checkpoints(tmp_path / "run", read_only=True).meta(0)
    assert meta["imported"] and meta["data"] == "" and meta["early_stop"]["bad"] == 0


@pytest.mark.parametrize("case", ["LlamaForCausalLM", "LlamaForCausalLM, tied", "GPT2Model"])
def test_an_imported_model_computes_what_the_original_does(tmp_path, case):
    reference = test_gpt.reference(
        {"GPT2Model": "gpt2", "LlamaForCausalLM": "llama"}.get(case, "llama3")
    )
    config, theirs, _ = stored(case)
    folder = write_folder(tmp_path / "in", config, theirs)
    import_model.import_run(folder, tmp_path / "run", lambda text: None)
    loaded = load_lib.load(tmp_path / "run", workdir_lib.read_config(tmp_path / "run"), None, None)
    batch = reference.batch
    out = loaded.task.model.apply(
        {"params": loaded.params}, batch["inputs"], batch["positions"], batch["segment_ids"]
    )
    logits = out.logits
    errors = test_gpt.error(np.asarray(logits)[reference.real], reference.logits[reference.real])
    assert errors < test_gpt.OUTPUT_BAR


@pytest.mark.parametrize("dtype, inside", [("bfloat16", "bfloat16"), ("float16", "float32")])
def test_half_precision_survives_import_and_export(tmp_path, dtype, inside):
    folder = write_folder(
        tmp_path / "in", {**CONFIG, "dtype": dtype}, gpt2_tensors(interop.files.DTYPES[dtype])
    )
    import_model.import_run(folder, tmp_path / "run", lambda text: None)
    assert workdir_lib.read_config(tmp_path / "run").model.param_dtype == inside
    export_model.export_run(tmp_path / "run", tmp_path / "out", log=lambda text: None)
    assert_same_files(folder, tmp_path / "out")
    export_model.export_run(
        tmp_path / "run", tmp_path / "wide", log=lambda text: None, dtype="float32"
    )
    assert interop.read(tmp_path / "wide").dtype == "float32"
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"


def test_shards_are_imported_and_exported(imported, tmp_path):
    quiet = lambda text: None
    export_model.export_run(imported, tmp_path / "shards", log=quiet, max_shard_bytes=6000)
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    import_model.import_run(tmp_path / "shards", tmp_path / "run", quiet)
    export_model.export_run(tmp_path / "run", tmp_path / "out", log=quiet)
    assert_same_files(tmp_path / "shards", tmp_path / "out")
    export_model.export_run(tmp_path / "run", tmp_path / "again", log=quiet, max_shard_bytes=6000)
    assert_same_files(tmp_path / "shards", tmp_path / "again")


def test_unknown_and_missing_tensors_are_listed(capsys, gpt2, tmp_path):
    folder = pathlib.Path(shutil.copytree(gpt2, tmp_path / "in"))
    tensors = gpt2_tensors()
    del tensors["transformer.h.1.mlp.c_fc.bias"], tensors["transformer.ln_f.weight"]
    save_file({**tensors, "extra.weight": np.ones(3, np.float32)}, folder / "model.safetensors")
    code, out, err = bigjax(capsys, "import", f"--from={folder}", f"--workdir={tmp_path}/run")
    assert code == 0, err
    (new,) = [line for line in out.splitlines() if "2 new" in line]
    assert "stack/layer_1/mlp/up/bias" in new and "final_norm/scale" in new
    assert "1 unknown tensors, kept for export: extra.weight" in out
    code, out, err = bigjax(capsys, "export", f"--workdir={tmp_path}/run", f"--to={tmp_path}/out")
    assert code == 0, err
    assert "1 unknown tensors, written unchanged: extra.weight" in out
    (drawn,) = [line for line in out.splitlines() if "initialised by the import" in line]
    assert "2 parameters" in drawn and "final_norm/scale" in drawn
    assert_same_files(folder, tmp_path / "out")


def test_a_truncated_file_is_refused_and_nothing_is_written(capsys, gpt2, tmp_path):
    folder = pathlib.Path(shutil.copytree(gpt2, tmp_path / "in"))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    code, _, err = bigjax(capsys, "import", f"--from={folder}", f"--workdir={tmp_path}/run")
    assert code == 2 and str(path) in err and "truncated" in err
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_failed_import_leaves_no_files(gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(import_model, "save", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        import_model.import_run(gpt2, tmp_path / "run", lambda text: None)
    assert not list(tmp_path.iterdir())


BAD = {
    "no source": (["import", "--workdir={tmp}/run"], "--from=FOLDER"),
    "no such source": (["import", "--from={tmp}/no", "--workdir={tmp}/run"], "/no does not exist"),
    "a work folder in use": (["import", "--from={gpt2}", "--workdir={run}"], "not an empty folder"),
    "no target": (["export", "--workdir={run}"], "--to=FOLDER"),
    "a target in use": (["export", "--workdir={run}", "--to={gpt2}"], "not an empty folder"),
    "no such type": (["export", "--workdir={run}", "--to={tmp}/out", "--dtype=int8"], "int8"),
    "no such step": (["export", "--workdir={run}", "--to={tmp}/out", "--step=7"], "step 7"),
    "no run": (["export", "--workdir={gpt2}x", "--to={tmp}/out"], "not the work folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(capsys, imported, gpt2, tmp_path, case):
    arguments, words = BAD[case]
    code, _, err = bigjax(
        capsys, *(a.format(tmp=tmp_path, gpt2=gpt2, run=imported) for a in arguments)
    )
    assert code == 2 and words in err
    assert not list(tmp_path.iterdir())


def change_config(workdir, **keys):
    path = workdir / "config.json"
    config = config_lib.from_json(path.read_text(), "").unlock()
    config.update_from_flattened_dict(keys)
    path.write_text(config_lib.to_json(config))


def test_a_model_without_a_transformers_class(capsys, copied, tmp_path):
    change_config(copied, **{"model.parallel_block": True})
    code, _, err = bigjax(capsys, "export", f"--workdir={copied}", f"--to={tmp_path}/out")
    assert code == 2 and "model.parallel_block=True" in err


def test_export_of_a_model_trained_by_bigjax(capsys, copied, tmp_path):
    """The same as after training: nothing is remembered of an original."""
    (copied / ORIGIN).unlink()
    code, _, err = bigjax(capsys, "export", f"--workdir={copied}", f"--to={tmp_path}/out")
    assert code == 0, err
    names = {
        "config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    }
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "GPT2Tokenizer"
    assert tokenizer["eos_token"] == "<|endoftext|>" and tokenizer["model_max_length"] == LENGTH
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == 257 and config["n_inner"] == F and config["attn_pdrop"] == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, x in gpt2_tensors().items():
        np.testing.assert_array_equal(written[name], x)


def test_the_moving_average_of_an_unrolled_model(copied, tmp_path):
    loaded = load_lib.load(copied, workdir_lib.read_config(copied), None, None)
    params = jax.device_get(loaded.params)
    params = {**params, "stack": unstack_layers(params["stack"])}
    double = jax.tree_util.tree_map(lambda x: 2 * x, params)
    change_config(copied, **{"model.scan": False, "train.ema": 0.5})
    checkpoints = Checkpoints(copied, keep=2)
    checkpoints.save(
        3,
        State(jnp.int32(3), params, (), {}, {"params": double}, jnp.bool_(False)),
        {"data": "", "early_stop": {}},
        {},
    )
    checkpoints.wait()
    checkpoints.close()
    export_model.export_run(copied, tmp_path / "out", log=lambda text: None)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, x in gpt2_tensors().items():
        np.testing.assert_array_equal(written[name], 2 * x)


@pytest.mark.parametrize(
    "case",
    [
        "BertForPreTraining",
        "BertForMaskedLM",
        "BertModel",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ],
)
def test_bert_survives_import_and_export(tmp_path, case):
    config, theirs, _ = stored(case)
    folder, lines = write_folder(tmp_path / "in", config, theirs), []
    import_model.import_run(folder, tmp_path / "run", lines.append)
    export_model.export_run(tmp_path / "run", tmp_path / "out", log=lines.append)
    assert_same_files(folder, tmp_path / "out")
    text = "\n".join(lines)
    # The body alone: the task's head is new, and the pooler waits for the export.
    assert ("5 new" in text and "mlm/dense/kernel" in text) == (case == "BertModel")
    assert ("kept for export: pooler/kernel" in text) == (case == "BertModel")


def test_untrusted_names_cannot_leave_the_folder(capsys, copied, tmp_path):
    """The layout of an import names the files that an export writes, and those that it copies."""
    path = copied / "huggingface.json"
    stored = json.loads(path.read_text())
    headers = stored["layout"]["headers"]
    headers["../escaped.safetensors"] = headers.pop("model.safetensors")
    path.write_text(json.dumps(stored))
    code, _, err = bigjax(capsys, "export", f"--workdir={copied}", f"--to={tmp_path}/out")
    assert code == 2 and "'../escaped.safetensors' is not a valid file name" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_overrides_of_an_import_are_used_or_refused(capsys, gpt2, tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    for flag in (
        "--config.data.tokenizer.lowercase=False",  # a BPE knows no such thing
        "--config.data.tokenizer.vocab_size=9",
        "--config.data.tokenizer.kind=bytes",
        "--config.model.dropout=0.5",
        "--config.task.z_loss=1",
    ):
        code, _, err = bigjax(capsys, "import", f"--from={gpt2}", workdir, flag)
        assert code == 2 and flag in err and "would have no effect" in err
        assert not (tmp_path / "run").exists()
    assert bigjax(capsys, "import", f"--from={gpt2}", workdir, "--config.data.seq_len=16")[0] == 0
    assert workdir_lib.read_config(f"{tmp_path}/run").data.seq_len == 16


def test_a_cased_vocabulary_without_settings_uses_the_overrides(tmp_path):
    vocabulary = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris", "a"]).encode()
    imported = types.SimpleNamespace(
        tokenizer_files={"vocab.txt": vocabulary},
        derived_files={},
        tokenizer_kind="wordpiece",
        folder="a folder",
        model={"vocab_size": 7},
    )
    for flags, ids in (([], [1, 6]), (["--config.data.tokenizer.lowercase=False"], [5, 6])):
        c, messages = helpers.filled(config_lib.new_config()), []
        config_lib.override(c, flags)
        folder = tmp_path / f"run{len(flags)}" / "tokenizer"
        import_model.import_tokenizer(imported, c, folder, str(folder.parent), {}, messages.append)
        assert data.load_tokenizer(folder).encode("Paris a").tolist() == ids
        assert c.data.tokenizer.lowercase is (not flags)
        assert bool(messages) is (not flags) and all(
            "a folder has pieces with" in s for s in messages
        )
