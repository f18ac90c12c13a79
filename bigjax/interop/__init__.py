"""Models of Hugging Face transformers: reading and writing them, without torch.

Folders are those of `save_pretrained`: config.json, safetensors files, and a tokenizer's files.
Parameters have the names and shapes of bigjax's unrolled form, such as
'stack/layer_0/attention/query/kernel'; names of other arrays begin with their collection, such as
'batch_stats/norm/mean'. A family's correspondence is a table (bert.py, gpt2.py, llama.py) that is
used in both directions; decoders.py has what those of decoders share. The module of a model names
its tables as HUGGING_FACE.
"""

from bigjax.interop.families import (
    family_of,
    is_huggingface,
    requires,
)
from bigjax.interop.files import MAX_SHARD_BYTES, new_folder
from bigjax.interop.origin import Layout, kept_parameters
from bigjax.interop.reader import Imported, read
from bigjax.interop.writer import check_dtype, with_dtype, write

__all__ = [
    "MAX_SHARD_BYTES",
    "Imported",
    "Layout",
    "check_dtype",
    "family_of",
    "is_huggingface",
    "kept_parameters",
    "new_folder",
    "read",
    "requires",
    "with_dtype",
    "write",
]
