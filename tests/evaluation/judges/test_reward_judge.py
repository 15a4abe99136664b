"""Heads and likelihood over questions with responses, against one row a prefix."""

import dataclasses
import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image
from processes import run

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.judges.judge import Question
from vlaa_jax.evaluation.judges.likelihood import LikelihoodJudge
from vlaa_jax.evaluation.judges.open import Policy, check_judge, open_directory, open_judge
from vlaa_jax.evaluation.judges.reward import RewardJudge
from vlaa_jax.models import reward_model
from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.processing.batches import pack
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.solutions import question_of
from vlaa_jax.processing.steps import split_steps
from vlaa_jax.sharding import place_parameter


def picture(width: int = 56) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(width).integers(0, 255, (56, width, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


STEPS = "<think>\nStep 1: northwest 7\nStep 2: centre 3\nStep 3: 7+3=10\n</think>\n<answer>10</answer>"
SHORT = "<think>\nStep 1: centre 3\n</think>\n<answer>3</answer>"
PLAIN = "I look.\n\nI answer."
SUM = Record("sum", (picture(),), "What is the sum?", "10", "math")
COUNT = Record("count", (picture(), picture(64)), "How many <image> and <image>?", "2", "digit")
WORDS = Record("words", (), "Why?", "so", "open_ended")
QUESTIONS = (
    Question(SUM, (STEPS, SHORT, STEPS)),
    Question(COUNT, (PLAIN, STEPS)),
    Question(WORDS, (SHORT, " ", "ends <|im_end|> early", STEPS)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`policy`, and `process` and `outcome` with the same head on it."""
    root = tmp_path_factory.mktemp("judges")
    tiny.write_policy(root / "policy")
    policy = hf.load(root / "policy")
    head = reward_model.RewardHead(tiny.SIZES.text.width, nnx.Rngs(3))
    head.weight[...] = 2 * head.weight[...]
    for kind in reward_model.KINDS:
        layout = hf.read_layout(root / "policy")
        reward_model.save(reward_model.with_head(policy, head), kind, root / kind, layout)
    return root


@pytest.fixture(scope="module")
def judges(folder):
    """One of each; the last batch is not full."""
    own = {kind: reward_model.load(folder / kind)[0] for kind in reward_model.KINDS}
    encoder = open_directory(folder / "process")
    return {kind: RewardJudge(own[kind], kind, encoder, rows=2) for kind in own} | {
        "likelihood": LikelihoodJudge(hf.load(folder / "policy"), encoder, rows=2)
    }


@pytest.fixture(scope="module")
def scores(judges):
    return {name: judge(QUESTIONS) for name, judge in judges.items()}


def states(model, encoder, record, tokens):
    """Hidden states of a row that holds prompt and tokens; and where the tokens begin."""
    prompt = encoder.encode(record)
    rows, _ = pack(
        [[(prompt, tokens)]],
        count=1,
        length=384,
        windows=4,
        targets=len(tokens),
        slots_per_window=encoder.geometry.window_units**2,
        no_vision=encoder.no_vision,
    )
    return np.asarray(run_row(model, rows))[0], len(prompt.tokens)


@jax.jit
def run_row(model, rows):
    features = model.vision(rows.vision, jnp.float32)
    return model(rows.tokens, rows.positions, Causal(rows.segments), features, rows.feature_index)


def test_every_step_has_the_score_of_its_prefix(judges, scores, folder):
    model, encoder = judges["process"].model, open_directory(folder / "process")
    seen = []
    for b, g in ((0, 0), (0, 1), (1, 0), (2, 0)):
        question = QUESTIONS[b]
        steps = split_steps(question.responses[g])
        assert scores["process"][b][g].shape == (len(steps),) and scores["process"][b][g].dtype == np.float64
        for count in range(1, len(steps) + 1):
            tokens, _ = encoder.solution(steps[:count])
            found, start = states(model, encoder, question_of(question.record), tokens)
            logit = float(model.reward_head(found[start + len(tokens) - 1]))
            np.testing.assert_allclose(scores["process"][b][g][count - 1], 1 / (1 + np.exp(-logit)), atol=2e-5)
            seen.append(logit)
    assert np.std(seen) > 0.1


def test_an_outcome_model_scores_the_end_alone(scores, judges):
    assert judges["outcome"].whole and not judges["process"].whole
    for whole, steps in zip(scores["outcome"], scores["process"], strict=True):
        for one, of_steps in zip(whole, steps, strict=True):
            assert one.shape == (1,)
            np.testing.assert_array_equal(one, of_steps[-1:])


def test_a_step_s_likelihood_is_the_mean_of_its_tokens(scores, folder):
    model, encoder = hf.load(folder / "policy"), open_directory(folder / "policy")
    for b, g in ((0, 0), (1, 0)):
        record, text = QUESTIONS[b].record, QUESTIONS[b].responses[g]
        # The text's own tokens, with the verifier's instruction before them: these texts break no token at a step.
        tokens = encoder.completion(text)
        found, start = states(model, encoder, record, tokens)
        logits = found[start - 1 : start + len(tokens) - 1] @ np.asarray(model.language.head[...]).T
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        each = logits[np.arange(len(tokens)), tokens]
        ends = [len(encoder.completion(text[: text.index(step)])) - 1 for step in split_steps(text)[1:]]
        expected = [part.mean() for part in np.split(each, ends)]
        np.testing.assert_allclose(scores["likelihood"][b][g], expected, atol=2e-5)
        assert np.std(expected) > 0.01


def test_what_cannot_be_scored_is_unknown_and_counted(scores, judges):
    for name, judge in judges.items():
        assert judge.problems == {"empty": 1, "spells a special token": 1}
        for g in (1, 2):
            assert np.isnan(scores[name][2][g]).all() and scores[name][2][g].shape == (1,)
        assert np.isfinite(np.concatenate(scores[name][2][::3])).all()


def test_equal_responses_have_equal_scores_and_logits_are_theirs(scores, judges, folder):
    np.testing.assert_array_equal(scores["process"][0][0], scores["process"][0][2])
    model = judges["process"].model
    logits = RewardJudge(model, "process", open_directory(folder / "process"), rows=2, logits=True)(QUESTIONS)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[0][0])), scores["process"][0][0], rtol=1e-12)


def test_long_questions_take_several_rows_and_what_has_no_room_is_counted(scores, judges, folder):
    encoder = open_directory(folder / "process")
    prompt, _ = encoder.sizes(question_of(SUM))
    room = prompt + len(encoder.solution(split_steps(STEPS))[0])
    judge = RewardJudge(judges["process"].model, "process", encoder, rows=2, longest=room + 2)
    long = STEPS.replace("centre 3", "centre 3 " * 20)
    found = judge([Question(SUM, (STEPS, long, SHORT))])
    assert judge.problems == {"too long for a row": 1}
    np.testing.assert_allclose(found[0][0], scores["process"][0][0], atol=2e-5)
    assert np.isnan(found[0][1]).all() and found[0][1].shape == (4,)
    np.testing.assert_allclose(found[0][2], scores["process"][0][1], atol=2e-5)


def test_judges_by_name(scores, folder):
    one = QUESTIONS[:1]
    names = {f"process:{folder / 'process'}": "process", f"likelihood:{folder / 'policy'}": "likelihood"}
    for name, kind in names.items():
        judge = open_judge(name, rows=2)
        assert judge.name == name
        np.testing.assert_allclose(judge(one)[0][1], scores[kind][0][1], atol=2e-5)
    untrained = open_judge("untrained:start", folder=lambda place: str(folder / "policy"), rows=2)
    model = reward_model.new_model(hf.load(folder / "policy"), seed=0, place=place_parameter)
    control = RewardJudge(model, "process", open_directory(folder / "policy"), rows=2)
    np.testing.assert_array_equal(untrained(one)[0][0], control(one)[0][0])
    own = Policy(hf.load(folder / "policy"), open_directory(folder / "policy"), jnp.dtype("float32"))
    assert isinstance(open_judge("likelihood", policy=own), LikelihoodJudge)
    rubric = open_judge(
        "rubric:any", answering=lambda model: lambda prompts: [f"Overall Score: 3 ({model})"] * len(prompts)
    )
    assert rubric([dataclasses.replace(one[0], responses=(SHORT,))])[0][0].tolist() == [3, 3]


def test_a_directory_brings_its_own_conversation(folder, tmp_path):
    directory = tmp_path / "policy"
    directory.mkdir()
    for path in (folder / "policy").iterdir():
        (directory / path.name).symlink_to(path)
    assert "<think>" in open_directory(directory).prompt.system
    (directory / "system_prompt.txt").write_text("You grade.")
    (directory / "vlaa_jax.json").write_text('{"instructions": {"math": "In TeX."}}')
    prompt = open_directory(directory).prompt
    assert prompt.system == "You grade." and prompt.instructions["math"] == "In TeX."
    (directory / "vlaa_jax.json").write_text("[]")
    with pytest.raises(InputError, match=r"vlaa_jax.json: expected a JSON object"):
        open_directory(directory)


def test_two_processes_score_as_one(scores, folder):
    (folder / "questions.pickle").write_bytes(pickle.dumps(QUESTIONS))
    how = {"script": "evaluation/judges/judges_of_processes", "seconds": 240}
    processes = run(2, folder / "two", [f"--folder={folder}"], **how)
    assert [process.popen.returncode for process in processes] == [0, 0], processes[1].said()
    found, problems = pickle.loads((folder / "scores.pickle").read_bytes())
    assert problems == {"empty": 1, "spells a special token": 1}
    for expected, given in zip(scores["process"], found, strict=True):
        for one, two in zip(expected, given, strict=True):
            np.testing.assert_allclose(two, one, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prm:x", "judge 'prm:x': expected process:DIR, outcome:DIR"),
        ("process", "judge 'process': expected"),
        ("process:", "judge 'process:': expected"),
        ("likelihood", "no policy is evaluated here"),
        ("process:none", "none does not exist: expected a Hugging Face directory"),
        ("outcome:{process}", "was trained as process model; name it process:"),
        ("process:{policy}", "is no reward model: expected reward_head.safetensors"),
    ],
)
def test_a_judge_that_cannot_be_opened_is_refused_at_once(folder, name, message):
    name = name.format(process=folder / "process", policy=folder / "policy")
    with pytest.raises(InputError) as refused:
        check_judge(name, policy=False)
    assert message in str(refused.value)
    with pytest.raises(InputError):
        open_judge(name)


def test_a_rubric_judge_needs_somebody_who_answers():
    with pytest.raises(InputError, match="nothing here answers"):
        open_judge("rubric:m")
