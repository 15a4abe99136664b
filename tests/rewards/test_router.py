import dataclasses
import random

import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.processing.images import Resize
from vlaa_jax.processing.records import VERIFIERS, Record
from vlaa_jax.rewards import Request, Trace, accuracy, check_gold, router, score, score_many, trace

CHOICES = ("10", "12", "15", "20")
MCQ = Record("m", (), "Which?", "B", "mcq", choices=CHOICES)
BOX = Record("b", (b"",), "Where?", "[0.1, 0.2, 0.7, 0.6]", "iou", box_space="normalised")


def think_and_answer(thinking: str, answer: str) -> str:
    return f"<think>{thinking}</think>\n<answer>{answer}</answer>"


# What a policy under reinforcement would find if it were there to find. Every one must score 0.
HACKS = [
    # verifier, completion, gold
    ("digit", "<think>so 3</think><answer>4</answer>", "3"),
    ("math", "<think>so 3</think><answer>4</answer>", "3"),
    ("mcq", "<think>so B</think><answer>A</answer>", "B"),
    ("digit", "<think>so 3</think><answer></answer>", "3"),
    ("math", "<think>so 3</think><answer> </answer>", "3"),
    ("digit", "<think>so 3</think>", "3"),
    ("digit", "3", "3"),
    ("math", r"\boxed{3}", "3"),
    ("digit", "<answer>3</answer><answer>4</answer>", "3"),
    ("digit", "<answer>4</answer><answer>3</answer>", "3"),
    ("math", "<answer>3</answer><answer>3</answer>", "3"),
    ("mcq", "<answer>B</answer><answer>A</answer>", "B"),
    ("digit", "<think><answer>3</answer></think><answer>4</answer>", "3"),
    ("digit", "<think>the answer is 3", "3"),
    ("digit", "<think>it is 3</think><answer>3", "3"),
    ("digit", "<answer>3 or 4</answer>", "3"),
    ("digit", "<answer>1 2 3 4 5 6 7 8 9</answer>", "3"),
    ("mcq", "<answer>A or B</answer>", "B"),
    ("mcq", "<answer>A or B.</answer>", "B"),
    ("mcq", "<answer>ABCD</answer>", "B"),
    ("mcq", "<answer>A, B, C, D</answer>", "B"),
    ("mcq", "<answer>A. 10 B. 12 C. 15 D. 20</answer>", "B"),
    ("mcq", "<answer>A</answer>", "AC"),
    ("mcq", "<answer>A,B</answer>", "AC"),
    ("math", "<answer>3 or 4</answer>", "3"),
    ("math", "<answer>4, 3</answer>", "3"),
    ("math", r"<answer>\boxed{3}\boxed{4}</answer>", "3"),
    ("math", r"<answer>\{1,2,3,4,5\}</answer>", "3"),
    ("math", "<answer>7 cm</answer>", "5 cm"),
    ("math", "<answer>5%</answer>", "50%"),
    ("math", "<answer>(2,1)</answer>", "(1,2)"),
    ("iou", "<answer>[0.1, 0.2, 0.7, 0.6] [0, 0, 1, 1]</answer>", "[0.1, 0.2, 0.7, 0.6]"),
    ("iou", "<answer>[0.7, 0.6, 0.1, 0.2]</answer>", "[0.1, 0.2, 0.7, 0.6]"),
    ("iou", "<answer>[nan, nan, nan, nan]</answer>", "[0.1, 0.2, 0.7, 0.6]"),
    ("iou", "<answer>[100, 200, 700, 600]</answer>", "[0.1, 0.2, 0.7, 0.6]"),
    ("iou", "<answer>[-1e308, -1e308, 1e308, 1e308]</answer>", "[0.1, 0.2, 0.7, 0.6]"),
]
RIGHT = [
    ("digit", "3", "3"),
    ("digit", "３.", "3"),
    ("mcq", "\nB\n", "B"),
    ("mcq", r"\text{B}", "B"),
    ("mcq", "B. 12", "B"),
    ("mcq", "A and C", "C,A"),
    ("math", "5.00", "5"),
    ("math", r"5\,\text{cm}", "5"),
    ("math", r"\frac{6}{8}", "3/4"),
    ("math", "−5", "-5"),
    ("math", "2,1", "1,2"),
    ("iou", "[0.1, 0.2, 0.7, 0.6]", "[0.1, 0.2, 0.7, 0.6]"),
]
EXAMPLES = {"mcq": MCQ, "iou": BOX}


@pytest.mark.quick
@pytest.mark.parametrize("verifier, completion, gold", HACKS)
def test_hacks_score_nothing(verifier, completion, gold):
    assert score(verifier, completion, gold, example=EXAMPLES.get(verifier)) == 0


@pytest.mark.quick
@pytest.mark.parametrize("verifier, answer, gold", RIGHT)
@pytest.mark.parametrize("strict", [False, True])
def test_right_answers_score_one(verifier, answer, gold, strict):
    completion = think_and_answer("some text with 7, A and 0.3", answer)
    assert score(verifier, completion, gold, example=EXAMPLES.get(verifier), strict=strict) == 1


@pytest.mark.quick
def test_strict_demands_the_thinking():
    assert score("digit", "<answer>3</answer>", "3") == 1
    assert score("digit", "<answer>3</answer>", "3", strict=True) == 0
    assert trace("digit", "<answer>3</answer>", "3", strict=True).rule == "not_strict"


@pytest.mark.quick
def test_trace():
    assert trace("digit", think_and_answer("x", " 03. "), "3") == Trace(
        valid=True, extracted="03.", normal_form="3", rule="equal", score=1.0, seconds=0.0
    )
    assert trace("digit", think_and_answer("x", "three"), "3") == Trace(
        valid=False, extracted="three", normal_form="", rule="not_one_integer", score=0.0, seconds=0.0
    )
    assert trace("digit", "three", "3") == Trace(
        valid=False, extracted=None, normal_form="", rule="no_answer", score=0.0, seconds=0.0
    )
    box = trace("iou", "<answer>[100, 200, 700, 600]</answer>", BOX.answer, example=BOX)
    assert (box.score, box.valid, box.rule, box.box_space_suspect) == (0.0, True, "iou", True)
    assert trace("digit", "<answer>3</answer>", "3").seconds > 0


@pytest.mark.quick
def test_pixels_use_the_resize_of_the_record():
    record = dataclasses.replace(BOX, answer="[100, 120, 300, 320]", box_space="pixels")
    resizes = (Resize(original=(640, 480), resized=(320, 240)),)
    assert score("iou", "<answer>[50, 60, 150, 160]</answer>", record.answer, example=record, resizes=resizes) == 1


def test_many_are_scored_in_order():
    requests = [
        Request(verifier, think_and_answer("x", answer), gold, EXAMPLES.get(verifier))
        for verifier, answer, gold in RIGHT
    ]
    requests += [Request(verifier, completion, gold, EXAMPLES.get(verifier)) for verifier, completion, gold in HACKS]
    random.Random(0).shuffle(requests)
    traces = score_many(requests)
    alone = [trace(r.verifier, r.completion, r.gold, example=r.example) for r in requests]
    assert traces == alone
    assert sum(t.score for t in traces) == len(RIGHT)


@pytest.mark.quick
def test_accuracy():
    half = Trace(valid=True, extracted="", rule="", score=0.5, seconds=0.0)
    assert accuracy(half, "iou") and accuracy(half, "open_ended")
    low = dataclasses.replace(half, score=0.49)
    assert not accuracy(low, "iou") and accuracy(low, "open_ended")
    none = dataclasses.replace(half, score=0.0)
    assert not accuracy(none, "open_ended")


GOOD = [
    Record("1", (), "", "3", "digit"),
    Record("2", (), "", "(b)", "mcq", choices=("x", "y")),
    Record("3", (), "", r"\[\boxed{y = 2x}\]", "math"),
    BOX,
    Record("5", (), "", "a cat", "open_ended"),
]
BAD = [
    (Record("r1", (), "", " ", "digit"), "empty"),
    (Record("r1", (), "", "", "open_ended"), "empty"),
    (Record("r1", (), "", "three", "digit"), "not one integer"),
    (Record("r1", (), "", "B", "mcq"), "0 options"),
    (Record("r1", (), "", "C", "mcq", choices=("x", "y")), "does not name options A to B"),
    (Record("r1", (), "", r"\frac{1", "math"), "cannot be parsed"),
    (Record("r1", (), "", "no solution at all", "math"), "not one mathematical expression"),
    (Record("r1", (b"",), "", "[0, 0, 0, 1]", "iou", box_space="normalised"), "no area"),
    (Record("r1", (b"",), "", "[0, 0, 1, 1]", "iou"), "box_space is ''"),
    (Record("r1", (b"",), "", "[0, 0, 1, 1]", "iou", box_space="metres"), "box_space is 'metres'"),
    (Record("r1", (), "", "[0, 0, 1, 1]", "iou", box_space="pixels"), "box_image"),
    (Record("r1", (), "", "3", "counting"), "unknown verifier 'counting'"),
]


@pytest.mark.parametrize("record", GOOD, ids=lambda record: record.verifier)
def test_good_golds(record):
    check_gold(record)


@pytest.mark.parametrize("record, message", BAD)
def test_bad_golds_name_the_record(record, message):
    with pytest.raises(InputError, match=f"record 'r1'.*{message}"):
        check_gold(record)


@pytest.mark.quick
def test_scoring_with_a_bad_gold_or_verifier_is_an_error_and_not_a_zero():
    with pytest.raises(InputError, match=r"record 'm'.*does not name"):
        score("mcq", "<answer>B</answer>", "E", example=MCQ)
    with pytest.raises(InputError, match="unknown verifier"):
        score("judge", "<answer>B</answer>", "B")
    with pytest.raises(InputError, match="box_space"):
        score("iou", "<answer>[0, 0, 1, 1]</answer>", "[0, 0, 1, 1]")


@pytest.mark.quick
def test_verifiers_are_those_of_a_record():
    assert router.VERIFIERS == VERIFIERS
