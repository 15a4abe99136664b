import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.rewards.extract import answer_text, normalise, unwrap

GATE = [
    # completion, text, rule
    ("<think>a</think><answer>3</answer>", "3", ""),
    ("<answer>3</answer>", "3", ""),
    ("so <answer>\n 3 \n</answer> done", "3", ""),
    ("3", None, "no_answer"),
    ("", None, "no_answer"),
    ("<think>the answer is 3</think>", None, "no_answer"),
    ("<answer>3", None, "no_answer"),
    ("3</answer>", None, "no_answer"),
    ("<answer></answer>", None, "blank"),
    ("<answer> \n\t</answer>", None, "blank"),
    ("<answer>\u200b\u00a0</answer>", None, "blank"),
    ("<answer>3</answer><answer>3</answer>", None, "several_answers"),
    ("<answer>3<answer>4</answer>", None, "several_answers"),
    ("<answer>3</answer></answer>", None, "several_answers"),
    ("</answer>3<answer>", None, "tags_out_of_order"),
    ("<Answer>3</Answer>", None, "no_answer"),
]

STRICT = [
    ("<think>a</think><answer>3</answer>", "3", ""),
    (" <think>a\nb</think>\n\n<answer>3</answer>\n", "3", ""),
    ("<answer>3</answer>", None, "not_strict"),
    ("<think> </think><answer>3</answer>", None, "not_strict"),
    ("well <think>a</think><answer>3</answer>", None, "not_strict"),
    ("<think>a</think> so <answer>3</answer>", None, "not_strict"),
    ("<think>a</think><answer>3</answer> done", None, "not_strict"),
    ("<think>a</think><think>b</think><answer>3</answer>", None, "not_strict"),
    ("<answer>3</answer><think>a</think>", None, "not_strict"),
    ("<think>a</think><answer><think>b</think>3</answer>", None, "not_strict"),
    ("<think>a</think><answer> </answer>", None, "blank"),
]


@pytest.mark.quick
@pytest.mark.parametrize("completion, text, rule", GATE)
def test_gate(completion, text, rule):
    assert answer_text(completion) == (text, rule)


@pytest.mark.quick
@pytest.mark.parametrize("completion, text, rule", STRICT)
def test_strict_gate(completion, text, rule):
    assert answer_text(completion, strict=True) == (text, rule)


_free_text = st.text().filter(lambda text: "answer>" not in text)


@given(before=_free_text, inside=_free_text, after=_free_text)
def test_one_block_anywhere_gives_its_stripped_content(before, inside, after):
    text, rule = answer_text(f"{before}<answer>{inside}</answer>{after}")
    if normalise(inside):
        assert (text, rule) == (inside.strip(), "")
    else:
        assert (text, rule) == (None, "blank")


@given(
    completion=st.lists(st.sampled_from(["<answer>", "</answer>", "<think>", "</think>", "3", " ", "\n"])).map("".join)
)
def test_gate_on_any_arrangement_of_tags(completion):
    text, rule = answer_text(completion)
    strict_text, _ = answer_text(completion, strict=True)
    assert (text is None) == bool(rule)
    if text is not None:
        assert completion.count("<answer>") == completion.count("</answer>") == 1
        assert text and text in completion
    assert strict_text in (None, text)


@pytest.mark.quick
@pytest.mark.parametrize(
    "text, plain",
    [("３", "3"), ("−5", "-5"), ("5\u2009cm", "5 cm"), ("5³", "5³"), ("2½", "2½"), ("①", "①"), ("\u200b7\ufeff ", "7")],
)
def test_normalise(text, plain):
    assert normalise(text) == plain


@pytest.mark.quick
@pytest.mark.parametrize(
    "text, plain",
    [
        ("$3$", "3"),
        ("$$3$$", "3"),
        (r"\( 3 \)", "3"),
        (r"\[ \boxed{3}. \]", "3"),
        (r"$\boxed{\text{B}}$.", "B"),
        ("**3**", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} or \boxed{4}", r"\boxed{3} or \boxed{4}"),
        ("$3$ or $4$", "$3$ or $4$"),
        ("**3** or **4**", "**3** or **4**"),
        (r"\boxed{3", r"\boxed{3"),
        ("$", "$"),
    ],
)
def test_unwrap(text, plain):
    assert unwrap(text) == plain


@given(st.text(alphabet=r"$\boxed{}[]()*.`3 " + "\n"))
def test_unwrap_ends_and_is_settled(text):
    assert unwrap(unwrap(text)) == unwrap(text)
