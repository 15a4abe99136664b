"""Packages, dependencies and extras of vlaa_jax."""

import setuptools

# Lower bounds are the versions that the tests ran with; an upper bound stands where a break is known.
_CORE = [
    "absl-py>=2.3",
    "array-record>=0.8.3",
    "etils[epath]>=1.13",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "importlib_resources>=6.5",
    "jax>=0.10.2,<0.11",  # flax 0.12.8 does not import under jax 0.11.1
    "jinja2>=3.1",
    "math-verify>=0.9.0,<0.10",
    "ml-collections>=1.1.0",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow>=12.0",
    "safetensors>=0.8.0",
    "sentencepiece>=0.2.1",
    "tensorboard>=2.21.0",
    "tensorflow-datasets>=4.9.10",
    "tqdm>=4.67",
    "transformers>=5.23.0,<6",
]

# The compiler for TPUs, for a host without one. The README's figures are those of this version.
_PLAN = ["libtpu==0.0.51; sys_platform == 'linux' and platform_machine == 'x86_64'"]
# The six-step pipeline: its engine, a client for endpoints, a reader of the sources' tables.
_DATA = ["apache-beam>=2.77", "openai>=3.52,<4", "pyarrow>=25.0"]
_GCS = ["gcsfs>=2026.10.1", "google-cloud-storage>=3.17.1"]

setuptools.setup(
    name="vlaa_jax",
    version="0.1.0",
    description="Post-training vision-language models for reasoning, JAX and TPU first",
    python_requires=">=3.11,<3.15",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["vlaa_jax*", "data_prep*"]),
    package_data={
        "vlaa_jax.evaluation.judges": ["prompts/*.txt"],
        "vlaa_jax.processing": ["prompts/*.txt"],
        "data_prep.build": ["prompts/*.txt"],
        "data_prep.digit_scenes": ["glyphs.npz", "GLYPHS_LICENCE.md", "chat_template.jinja", "demo_policy/*"],
    },
    install_requires=_CORE,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "gpu": ["jax[cuda13]>=0.10.2,<0.11"],
        "plan": _PLAN,
        "gcs": _GCS,
        "data": _DATA,
        "test": [
            *_PLAN,
            *_GCS,
            *_DATA,
            "hypothesis>=6.150",
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "ruff>=0.15,<0.18",
            "scikit-learn>=1.7",
            "torch==2.13.0",
            "trl==1.16.0",
        ],
    },
)
