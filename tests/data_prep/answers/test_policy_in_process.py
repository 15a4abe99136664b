"""Our own policy as a model: the same completions as its rollouts, whatever else is in the batch."""

import dataclasses
import io
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from data_prep.answers.cache import cache_key
from data_prep.answers.ledger import create_ledger
from data_prep.answers.model import Answer, Request, Unanswered
from data_prep.answers.open import open_answerer
from data_prep.answers.policy import Policy
from data_prep.digit_scenes import demo
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record


def picture():
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


# One shape of programs: prompts of up to 128 tokens, eight rows, six new tokens, drawn at temperature 1.
TEXT = Request("How many digits?", max_tokens=6, temperature=1.0)
SEEN = dataclasses.replace(TEXT, image=picture())
TOLD = dataclasses.replace(TEXT, system="You count.")
AGAIN = dataclasses.replace(TEXT, attempt=1)


@pytest.fixture(scope="module")
def directory():
    return pathlib.Path(demo.checkpoint("demo"))


@pytest.fixture(scope="module")
def policy(directory):
    return Policy(str(directory), batch=8)


def test_a_request_has_its_answer_in_any_batch(policy, directory):
    arrived = {}
    bad = Request("What?", b"no picture", max_tokens=6, temperature=1.0)
    results = policy.answer([TEXT, bad, SEEN, TOLD, AGAIN], arrived.__setitem__)
    assert [arrived[place] for place in range(5)] == results
    assert isinstance(results[1], Unanswered) and results[1].reason.startswith("not asked: ")
    answers = results[:1] + results[2:]
    for answer in answers:
        assert isinstance(answer, Answer) and 0 < answer.completion_tokens <= 6 and answer.model == policy.name
        assert answer.truncated == (answer.completion_tokens == 6)
    assert answers[1].prompt_tokens > answers[0].prompt_tokens
    assert Policy(str(directory), batch=2).answer([AGAIN, TEXT, TOLD]) == [answers[3], answers[0], answers[2]]


def test_attempts_are_draws_of_their_own(policy):
    attempts = [dataclasses.replace(TEXT, attempt=attempt) for attempt in range(8)]
    assert len({answer.text for answer in policy.answer(attempts)}) > 1


def test_the_system_message_of_its_training(policy, directory, tmp_path):
    """A directory that brings one is asked with it, unless the request says otherwise."""
    own = (directory / "system_prompt.txt").read_text().strip()
    asked_with_own = dataclasses.replace(TEXT, system=own)
    implied, explicit, told = policy.answer([TEXT, asked_with_own, TOLD])
    assert implied.prompt_tokens == explicit.prompt_tokens > told.prompt_tokens
    shutil.copytree(directory, tmp_path / "other")
    (tmp_path / "other" / "system_prompt.txt").write_text("You count.\n")
    implied, explicit, told_again = Policy(str(tmp_path / "other"), batch=8).answer([TEXT, asked_with_own, TOLD])
    assert implied.prompt_tokens == told_again.prompt_tokens == told.prompt_tokens < explicit.prompt_tokens


def test_its_name_is_its_content(policy, directory, tmp_path):
    shutil.copytree(directory, tmp_path / "copy")
    assert Policy(str(tmp_path / "copy"), batch=1).name == policy.name
    (tmp_path / "copy" / "config.json").write_text((directory / "config.json").read_text() + "\n")
    assert Policy(str(tmp_path / "copy"), batch=1).name != policy.name
    with pytest.raises(InputError, match="does not exist: expected a Hugging Face directory"):
        Policy(str(tmp_path / "nothing"), batch=1)


def test_it_samples_what_a_rollout_samples(policy, directory):
    """The tokens of `Generator` for the same conversation and random bits."""
    from vlaa_jax.training import saved_policy

    saved = saved_policy.from_checkpoint(directory)
    generator = saved.generator(
        group=1, temperature=1.0, new_tokens=6, prompt_buckets=(128,), window_buckets=(4,), seed=0
    )
    prompt = saved.encoder.encode(Record("of a test", (SEEN.image,), SEEN.prompt, "", "open_ended"))
    draw = int(cache_key(policy.name, SEEN)[:15], 16)
    out = generator(saved.weights(), [prompt] * 8, [draw] * 8).completions
    expected = saved.encoder.tokenizer.decode(np.asarray(out.tokens)[0, 0, : int(out.lengths[0, 0])].tolist())
    assert policy.answer([SEEN])[0].text == expected


def test_behind_the_cache_it_costs_nothing(directory, tmp_path):
    ledger = create_ledger(str(tmp_path / "ledger"), 1.0)
    section = {"model": f"policy:{directory}", "price_completion": 5.0}
    answerer = open_answerer(section, cache=str(tmp_path / "c"), ledger=str(tmp_path / "ledger"), stage="caption")
    (first,) = answerer.answer([TEXT])
    (second,) = answerer.answer([TEXT])
    assert (first.text, first.cost, second.cached) == (second.text, 0.0, True)
    (total,) = ledger.summary()
    assert (total.requests, total.cached, total.cost, total.completion_tokens) == (1, 1, 0, first.completion_tokens)
