"""What the asking steps put into a prompt, and what they make of an answer."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.build import steps
from data_prep.build.engine import in_parts
from data_prep.build.steps import ASKING, CAPTION, DISTIL, REWRITE, VERIFY, fill, split_thinking, unfit
from data_prep.drafts import Draft, SetAside
from vlaa_jax.errors import InputError

pytestmark = pytest.mark.quick

TEXT = "<think>\nThe caption says two.\n</think>\n\nThere are 2."
DRAFT = Draft("arxivqa-1", "arxivqa", "1.jpg", "How many?", "2", "math", caption="Two dots.", distilled=TEXT)
SECTION = {"drift": 15}


def of(source: str, **fields) -> Draft:
    return dataclasses.replace(DRAFT, source=source, **fields)


def test_our_prompts_have_their_slots_and_nothing_else_in_braces():
    for step in ASKING:
        text = steps.read_prompt(step, "")
        assert set(steps.re.findall(r"\{(\w*)\}", text)) - {"context"} == set(step.slots)


def test_a_prompt_of_the_users(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("{caption} {{x}} \\frac{1}{2} {question}\n")
    assert steps.read_prompt(DISTIL, str(file)) == "{caption} {{x}} \\frac{1}{2} {question}"
    file.write_text("{caption} {Question}")
    with pytest.raises(InputError, match=r"config\.distil\.prompt: .*mine\.txt has no \{question\}"):
        steps.read_prompt(DISTIL, str(file))
    with pytest.raises(InputError, match=r"config\.distil\.prompt: .*none\.txt cannot be read"):
        steps.read_prompt(DISTIL, str(tmp_path / "none.txt"))


def test_slots_are_filled_once_and_braces_left_alone():
    # The caption's own {question} is text, and so is the format string of the question.
    filled = fill(r"\boxed{} {a}: {caption} | {question}", caption="{question}", question=r"\frac{1}{2} {0} {")
    assert filled == r"\boxed{} {a}: {question} | \frac{1}{2} {0} {"


def test_a_paragraph_with_an_empty_slot_is_left_out():
    template = "Describe.\n\nKnown:\n{context}\n\nNothing else."
    assert fill(template, context="a sphere\n\na cube") == "Describe.\n\nKnown:\na sphere\n\na cube\n\nNothing else."
    assert fill(template, context=" ") == "Describe.\n\nNothing else."


def test_which_drafts_are_asked():
    asked = {step.name: {source for source in steps.PUBLISHED if step.asks_for(of(source))} for step in ASKING}
    captioned = {"clevr_math", "arxivqa", "docvqa", "vizwiz"}
    assert asked == {
        "caption": captioned,
        "distil": captioned | {"allava_laion", "synthesis"},
        "rewrite": captioned | {"allava_laion", "synthesis"},
        "verify": captioned | {"allava_laion", "synthesis", "coco", "vg"},
    }


def test_the_captioner_hears_what_is_known():
    prompt = steps.read_prompt(CAPTION, "")
    assert CAPTION.ask(of("clevr_math", context="a red cube"), prompt).count("\na red cube\n") == 1
    assert "beforehand" not in CAPTION.ask(DRAFT, prompt)
    assert CAPTION.accept(DRAFT, " A chart. \n", SECTION).caption == "A chart."
    assert CAPTION.accept(DRAFT, " \n", SECTION).reason == "empty answer"


def test_the_reasoner_sees_by_the_caption_or_gets_the_problem_alone():
    prompt = steps.read_prompt(DISTIL, "")
    said = DISTIL.ask(DRAFT, prompt)
    assert "Caption:\nTwo dots." in said and said.endswith("Question:\nHow many?")
    assert DISTIL.ask(of("synthesis", text_question="Find $x_{1}$."), prompt) == "Find $x_{1}$."


@pytest.mark.parametrize(
    ("answer", "distilled"),
    [
        (f"{TEXT}\n", TEXT),
        ("Two.\n</think>\n\n2", "<think>\nTwo.\n</think>\n\n2"),  # a template that opens the block in the prompt
        ("There are 2.", None),
        ("<think>Two.", None),
        ("<think>Two.</think> \n", None),
        ("<think> </think>2", None),
        ("Sure: <think>Two.</think>2", None),
        ("<think>Two.</think>2<think>Three.</think>3", None),
        ("<think>Two.</think><answer>2</answer>", None),
        ("", None),
    ],
)
def test_distilled_answers(answer, distilled):
    outcome = DISTIL.accept(DRAFT, answer, SECTION)
    if distilled is None:
        assert isinstance(outcome, SetAside) and outcome.draft == DRAFT
    else:
        assert outcome == dataclasses.replace(DRAFT, distilled=distilled)


@pytest.mark.parametrize(("words", "kept"), [(-16, False), (-15, True), (0, True), (15, True), (16, False)])
def test_drift_of_more_than_fifteen_words_is_dropped(words, kept):
    draft = of("arxivqa", distilled="<think> " + "dot " * 20 + "</think> 2")
    outcome = REWRITE.accept(draft, "<think> " + "dot " * (20 + words) + "</think>\n2", SECTION)
    assert isinstance(outcome, Draft) == kept
    if not kept:
        assert outcome.reason == f"drift of more than 15 words: from 23 to {23 + words}"


def test_a_rewriting_keeps_the_think_block():
    assert REWRITE.ask(DRAFT, "{text}") == TEXT
    assert REWRITE.accept(DRAFT, TEXT.replace("caption says", "image shows"), SECTION).rewritten.count("image") == 1
    for lost in ("The image shows two.\n\nThere are 2.", TEXT.replace("2.", "<answer>2</answer>")):
        assert isinstance(REWRITE.accept(DRAFT, lost, SECTION), SetAside)


def test_the_verifier_compares_final_texts():
    prompt = "{gold}|{answer}"
    assert VERIFY.ask(DRAFT, prompt) == "2|There are 2."
    assert VERIFY.ask(of("arxivqa", rewritten="<think>t</think>Two."), prompt) == "2|Two."


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [("Yes", "kept"), (" Yes\n", "kept"), ("No", "aside"), ("No\n", "aside")]
    + [(answer, "again") for answer in ("yes", "Yes.", "Yes, it does.", "", "NO", "Yes No")],
)
def test_only_yes_is_kept_and_anything_but_yes_and_no_is_asked_again(answer, outcome):
    result = VERIFY.accept(DRAFT, answer, SECTION)
    assert {"kept": result is DRAFT, "aside": isinstance(result, SetAside), "again": result is None}[outcome]


@given(st.text(st.characters(exclude_characters="<>")), st.text(st.characters(exclude_characters="<>")))
def test_the_two_parts_of_a_text(thinking, final):
    parts = split_thinking(f" <think>{thinking}</think>{final}")
    whole = bool(thinking.strip() and final.strip())
    assert parts == ((thinking.strip(), final.strip()) if whole else None)


@given(st.text(st.characters(codec="utf-8")))
def test_texts_that_cannot_be_stored(text):
    assert bool(unfit(text)) == ("\0" in text)
    assert "NUL" in unfit(text + "\0") and "surrogate" in unfit("\ud800") and not unfit("\U0001f600\n")


@pytest.mark.parametrize(
    "sizes, parts",
    [
        ([], [[]]),
        ([3], [[0]]),
        ([9], [[0]]),
        ([2, 2, 1, 5, 6, 1], [[0, 1, 2], [3], [4], [5]]),
        ([0, 5, 0], [[0, 1, 2]]),
    ],
)
def test_files_are_dealt_into_parts_in_their_order(sizes, parts):
    assert [list(part) for part in in_parts(sizes, 5)] == parts
