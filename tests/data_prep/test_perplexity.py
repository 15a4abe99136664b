"""Perplexities against transformers' on both architectures; killed at every batch; wrong input."""

import contextlib
import io
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_checkpoint import picture, write_checkpoint
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil
from xla_flags import of_devices

from data_prep.perplexity import likelihood
from data_prep.perplexity.score import score_records
from data_prep.perplexity.scores import Score, read_scores, to_lines, whole_batches
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl.config import QWEN2, QWEN2_5
from vlaa_jax.processing.conversation import completion_text, load_prompt
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource, write_records

ROOT = pathlib.Path(__file__).parents[2]
MAX_PIXELS = 24 * 32  # smaller than some pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scorers, `qwen2_5_vl` and `qwen2_vl`, and ten records of several lengths with none to two pictures, of which
    `few` has three."""
    directory = tmp_path_factory.mktemp("perplexity")
    for seed, model_type in enumerate((QWEN2_5, QWEN2)):
        write_checkpoint(directory / model_type, tied=bool(seed), seed=seed, model_type=model_type)
    records = [
        Record(
            f"r{i}",
            tuple(picture(i, size) for size in ((24, 16), (40, 32))[: i % 3]),
            f"Which dot is number {i}?",
            str(i),
            "digit",
            trace="So. " * (1 + 30 * (i % 4)),
        )
        for i in range(10)
    ]
    splits = {"sft": records, "few": records[::4]}
    write_records(directory / "shards", splits, name="tiny", version="1.0.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLAA_JAX_CACHE", str(directory / "cache"))
        patch.setattr(likelihood, "_MOST_LENGTHS", 1)
        yield directory


def score(folder, out, scorer=QWEN2_5, **options) -> dict[str, Score]:
    score_records(f"{folder}/shards:sft", f"{folder}/{scorer}", out, batch=4, max_pixels=MAX_PIXELS, **options)
    return read_scores(out)


@pytest.fixture(scope="module")
def whole(folder):
    """Files of all scores, undisturbed, by scorer."""
    files = {scorer: folder / f"{scorer}.jsonl" for scorer in (QWEN2_5, QWEN2)}
    for scorer, path in files.items():
        score(folder, path, scorer)
    return files


class Oracle:
    """transformers with its own tokenizer, template and image processor."""

    def __init__(self, directory):
        self.model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(directory)

    def mean_nll(self, record: Record, answer: str) -> tuple[int, float]:
        """Tokens of an answer to the record, and their mean negative log-likelihood."""
        images = {}
        text = self.tokenizer.apply_chat_template(load_prompt().messages(record), tokenize=False)
        if record.images:
            pictures = [Image.open(io.BytesIO(image)) for image in record.images]
            size = {"shortest_edge": 64, "longest_edge": MAX_PIXELS}
            images = self.processor(pictures, size=size, return_tensors="pt")
            parts = text.split("<|image_pad|>")
            pads = ["<|image_pad|>" * (int(grid.prod()) // 4) for grid in images["image_grid_thw"]]
            text = parts[0] + "".join(a + b for a, b in zip(pads, parts[1:], strict=True))
        prompt, answer = (self.tokenizer.encode(part, add_special_tokens=False) for part in (text, answer))
        tokens = torch.tensor([prompt + answer])
        self.model.model.rope_deltas = None
        with torch.no_grad():
            kinds = (tokens == self.model.config.image_token_id).int()
            logits = self.model(input_ids=tokens, mm_token_type_ids=kinds, **images).logits[0]
        log_probabilities = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        return len(answer), -float(log_probabilities[range(len(answer)), answer].mean())


@pytest.mark.parametrize("scorer", [QWEN2_5, QWEN2])
def test_perplexities_equal_transformers(folder, whole, tmp_path, scorer):
    records = list(RecordSource(f"{folder}/shards:sft"))
    oracle = Oracle(folder / scorer)
    answered = read_scores(whole[scorer])
    thought = score(folder, tmp_path / "think.jsonl", scorer, span="think")
    assert answered.keys() == thought.keys() == {record.id for record in records}
    assert np.ptp([each.mean_nll for each in answered.values()]) > 0.1
    texts = [(answered, r, f"{completion_text(r.trace, r.answer)}<|extra_9|>") for r in records]
    texts += [(thought, r, f"<think>\n{r.trace}\n") for r in records[::4]]
    for found, record, text in texts:
        tokens, mean = oracle.mean_nll(record, text)
        assert found[record.id].tokens == tokens
        assert found[record.id].perplexity == pytest.approx(math.exp(mean), rel=1e-4)


def test_killed_at_every_batch_it_ends_with_the_same_bytes(folder, whole, tmp_path, monkeypatch):
    expected = whole[QWEN2_5].read_bytes()
    true_score, calls, kills = likelihood.Scorer.score, [], []

    def die_at_every_second(self, *arguments):
        calls.append(1)
        if len(calls) % 2:
            return true_score(self, *arguments)
        [partial] = tmp_path.glob(".killed.jsonl.*")
        kills.append(partial.read_bytes())  # as a kill would leave it: nothing waits in a buffer
        with partial.open("ab") as file:
            file.write(expected[len(kills[-1]) :][:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(likelihood.Scorer, "score", die_at_every_second)
    while not (tmp_path / "killed.jsonl").exists():
        with contextlib.suppress(KeyboardInterrupt):
            score(folder, tmp_path / "killed.jsonl")
    assert (tmp_path / "killed.jsonl").read_bytes() == expected
    # Every batch was scored once, and at each kill one was begun in vain.
    assert len(kills) == 2 and len(calls) == 3 + 2
    assert all(expected.startswith(left) and left.endswith(b"\n") for left in kills) and len(set(kills)) == len(kills)
    assert [path.name for path in tmp_path.iterdir()] == ["killed.jsonl"]


def test_the_command_on_two_devices(folder, whole, tmp_path):
    paths = [f"--data={folder}/shards:few", f"--checkpoint={folder}/{QWEN2}", f"--out={tmp_path}/there.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", "perplexity", *paths, "--batch=1", f"--max-pixels={MAX_PIXELS}"],
        env=os.environ | {"XLA_FLAGS": of_devices(2), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert f"3 records of {folder}/shards:few in 2 batches, 0 of them scored before" in done.stdout
    assert "batch 2 of 2, 00:00 left" in done.stderr
    here, there = read_scores(whole[QWEN2]), read_scores(tmp_path / "there.jsonl")
    assert sorted(there) == ["r0", "r4", "r8"]
    for name, found in there.items():
        assert found.mean_nll == pytest.approx(here[name].mean_nll, rel=1e-5)


def test_what_other_settings_began_is_left_alone(folder, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        results = iter([[Score("r0", 1, 1.0)]])
        patch.setattr(likelihood.Scorer, "score", lambda *_: next(results, None) or interrupt())
        score(folder, tmp_path / "a.jsonl")
    [begun] = tmp_path.iterdir()
    left = begun.read_bytes()
    score(folder, tmp_path / "a.jsonl", span="think")
    assert left and begun.read_bytes() == left
    with pytest.raises(InputError, match=r"a\.jsonl exists already: nothing was scored"):
        score(folder, tmp_path / "a.jsonl")


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.quick
def test_what_cannot_be_scored_is_named(folder, tmp_path, monkeypatch):
    def message(**options):
        with pytest.raises(InputError) as caught:
            score(folder, tmp_path / "a.jsonl", **options)
        assert not (tmp_path / "a.jsonl").exists()
        return str(caught.value)

    assert message(scorer="shards") == f"{folder}/shards is not a checkpoint: it has no config.json"
    monkeypatch.setattr(likelihood, "place_rows", lambda arrays: arrays)

    def infinite(model, rows, targets):
        out = np.zeros(targets.tokens.shape)
        out[1, 3] = -np.inf
        return out

    monkeypatch.setattr(likelihood, "log_probabilities", infinite)
    assert message() == "record r1: the checkpoint gives its completion no finite likelihood"


@pytest.mark.quick
def test_batches_have_few_shapes_and_the_longest_come_first(monkeypatch):
    monkeypatch.setattr(likelihood, "_MOST_LENGTHS", 4)
    prompt, completion = np.asarray([90, 900, 100, 80, 90, 0]), np.asarray([30, 90, 20, 33, 40, 0])
    windows = np.asarray([0, 3, 0, 0, 0, 0])
    problems = np.asarray([""] * 5 + ["no picture"])
    index = Index(prompt, windows, completion, np.zeros(6, int), np.asarray(list("abcdef")), problems)
    # Lengths 120, 990, 120, 113, 130: multiples of 64 above them are 128, 1024 and 192.
    assert likelihood.plan_batches(index, 2) == [
        likelihood.Batch((1,), 1024, 4, 90),
        likelihood.Batch((4,), 192, 4, 40),
        likelihood.Batch((0, 2), 128, 4, 33),
        likelihood.Batch((3,), 128, 4, 33),
    ]


# --- files ---


@pytest.mark.quick
@settings(max_examples=50)
@given(st.data())
def test_any_beginning_of_a_file_is_taken_up_to_its_last_whole_batch(data):
    ids = data.draw(st.lists(st.text(), min_size=1, max_size=8, unique=True))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(ids) - 1), max_size=3)) if len(ids) > 1 else set())
    batches = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    content = to_lines([Score(name, 3, 0.5) for name in ids]).encode()
    stop = data.draw(st.integers(0, len(content)))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "partial"
        path.write_bytes(content[:stop])
        count = whole_batches(path, batches)
        left = path.read_bytes()
    kept = to_lines([Score(name, 3, 0.5) for batch in batches[:count] for name in batch]).encode()
    assert left == kept and len(kept) <= stop
    following = to_lines([Score(name, 3, 0.5) for batch in batches[: count + 1] for name in batch]).encode()
    assert count == len(batches) or len(following) > stop


@pytest.mark.quick
@pytest.mark.parametrize(
    "line",
    ["", "{", "3", '{"id": "a", "tokens": 2}', '{"id": "a", "tokens": 2, "mean_nll": 1, "x": 1}']
    + [json.dumps({"id": "a", "tokens": 2, "mean_nll": 1.0} | change)
       for change in ({"id": 3}, {"tokens": 0}, {"tokens": 1.5}, {"mean_nll": -1}, {"mean_nll": math.nan},
                      {"mean_nll": 800}, {"mean_nll": "1"})],
)  # fmt: skip
def test_a_line_that_is_no_score_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(to_lines([Score("b", 1, 1.0)]) + line + "\n")
    with pytest.raises(InputError) as caught:
        read_scores(path)
    assert str(caught.value) == f"{path}:2: no score, expected an object with id, tokens and mean_nll"
