"""Search trees: selection, back-up and merging of steps, by hand and for any rollouts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.search.tree import Rollout, Rules, Tree, cut_steps
from data_prep.search.values import Valuation, judge_tree
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.steps import split_steps

pytestmark = pytest.mark.quick

RULES = Rules(depth=4, width=0, exploration=1.5, prior="visits", duplicates="normalised")


def rollout(text, reward=0.0, is_cut=False):
    answer = text.partition("<answer>")[2].partition("</answer>")[0] or None
    return Rollout(text, len(text), is_cut, reward, reward >= 0.5, answer)


def solution(*steps, answer="7"):
    return "<think>\n" + "".join(f"Step {k}: {step}\n" for k, step in enumerate(steps, 1)) + f"</think>\n{tag(answer)}"


def tag(answer):
    return f"<answer>{answer}</answer>"


def at(tree, *keys):
    node = tree.root
    for key in keys:
        node = next(child for own, child in node.children.items() if key in own)
    return node


@pytest.fixture
def tree():
    """Four rollouts from the question: three begin with a, one with b; two of a's go on with c."""
    tree = Tree(RULES)
    rollouts = [solution("a", "c"), solution("a", "C."), solution("a"), solution("b")]
    tree.add(tree.root, [rollout(text, reward) for text, reward in zip(rollouts, (1, 0.25, 0, 1), strict=True)])
    return tree


def test_rewards_are_backed_up_along_the_steps(tree):
    counts = {
        (): (4, 2.25, 0),
        ("step 1: a",): (3, 1.25, 3),
        ("step 1: a", "step 2: c"): (2, 1.25, 2),
        ("step 1: b",): (1, 1.0, 1),
    }
    for path, expected in counts.items():
        node = at(tree, *path)
        assert (node.visits, node.total, node.drawn) == expected, path
    end = at(tree, "a", "c", "answer")
    assert (end.ends, end.visits, end.total, end.answer, end.right) == (2, 2, 1.25, "7", True)
    assert (tree.right, tree.rollouts, tree.root.sampled) == (2, 4, 1)
    assert end.texts == ("<think>\nStep 1: a\n", "Step 2: c\n", "</think>\n<answer>7</answer>")


def test_puct_by_hand(tree):
    a, b = at(tree, "a"), at(tree, "b")
    assert tree.puct(a) == pytest.approx(1.25 / 3 + 1.5 * 0.75 * 2 / 4)  # 0.979
    assert tree.puct(b) == pytest.approx(1.0 + 1.5 * 0.25 * 2 / 2)  # 1.375
    assert tree.select(1) == [b]
    assert tree.select(3) == [b, a, at(tree, "a", "c")]


def test_uniform_prior_and_exploration_change_the_choice(tree):
    b = at(tree, "b")
    b.total = 0.0
    assert tree.puct(b) == pytest.approx(0.375) and tree.select(1) == [at(tree, "a")]
    eager = Tree.from_json(Rules(4, 0, 20.0, "uniform", "normalised"), tree.to_json())
    assert eager.puct(at(eager, "b")) == pytest.approx(20 * 0.5 * 2 / 2)
    assert eager.select(1) == [at(eager, "b")]


def test_a_rollout_from_a_leaf_counts_on_its_path_but_is_no_draw_of_the_policy_there(tree):
    a, c = at(tree, "a"), at(tree, "a", "c")
    tree.add(c, [rollout("Step 3: d\n</think>\n" + tag("5"))])
    assert (tree.root.visits, a.visits, c.visits) == (5, 4, 3)
    assert (a.drawn, c.drawn, at(c_tree(tree), "d").drawn) == (3, 2, 1)
    assert a.total == 1.25 and c.sampled == 1
    assert at(c_tree(tree), "d", "answer").right is False


def c_tree(tree):
    """The part of the tree behind a, c."""
    part = Tree(RULES)
    part.root = at(tree, "a", "c")
    return part


def test_selection_ends_at_the_depth_the_width_and_the_room(tree):
    a, b, c = at(tree, "a"), at(tree, "b"), at(tree, "a", "c")
    shallow = Tree.from_json(Rules(1, 0, 1.5, "visits", "normalised"), tree.to_json())
    assert shallow.select(3) == [at(shallow, "b"), at(shallow, "a"), shallow.root], "nothing else: the question again"
    narrow = Tree.from_json(Rules(4, 1, 1.5, "visits", "normalised"), tree.to_json())
    assert narrow.select(2) == [at(narrow, "a"), at(narrow, "a", "c")], "b was drawn less often"
    assert tree.select(2, fits=lambda node: node is not b) == [a, c]


def test_what_ends_is_not_sampled_from_and_the_question_may_be_again():
    tree = Tree(RULES)
    assert tree.select(1) == [tree.root]
    tree.add(tree.root, [rollout("")])  # an answer of nothing
    assert tree.root.ends == 1 and tree.select(2) == [tree.root, tree.root]
    tree.add(tree.root, [rollout(tag("7"), 1.0)])
    assert tree.select(1) == [tree.root]


def test_a_cut_step_is_no_node_but_its_rollout_counts():
    tree = Tree(RULES)
    tree.add(tree.root, [rollout("<think>\nStep 1: a\nStep 2: wes", is_cut=True), rollout("<thi", is_cut=True)])
    assert [node.text for node in tree.nodes()] == ["", "<think>\nStep 1: a\n"]
    assert tree.root.visits == 2 and at(tree, "a").visits == 1 and at(tree, "a").ends == 0
    assert (tree.cut, tree.right) == (2, 0)


def test_a_continuation_that_makes_other_steps_of_its_start_adds_none():
    tree = Tree(RULES)
    tree.add(tree.root, [rollout("First this.\n\nThen that.\n\nSo 7.", 1.0)])
    start = at(tree, "first this")
    tree.add(start, [rollout("Step 1: a\nStep 2: b", 0.0), rollout("Then that.\n\nSo 8.", 0.0)])
    assert (start.visits, start.total, [len(start.children), start.ends]) == (3, 1.0, [1, 0])
    assert len(at(tree, "first this", "then that").children) == 2


def test_a_step_that_ended_a_rollout_is_written_as_one_that_goes_on():
    tree = Tree(RULES)
    tree.add(tree.root, [rollout("One."), rollout("One.\n\nTwo.")])
    assert at(tree, "one").text == "One.\n\n" and at(tree, "one", "two").texts == ("One.\n\n", "Two.")
    assert at(tree, "one").ends == 1 and at(tree, "one").visits == 2


@pytest.mark.parametrize(("duplicates", "children"), [("normalised", 1), ("exact", 3)])
def test_duplicates(duplicates, children):
    tree = Tree(Rules(4, 0, 1.0, "visits", duplicates))
    tree.add(
        tree.root, [rollout(text) for text in ("Step 1: In the  West.", "step 1: in the west", "Step 1: in the west")]
    )
    assert len(tree.root.children) == children


def test_values_by_hand(tree):
    c, end = at(tree, "a", "c"), at(tree, "b", "answer")
    assert Valuation()(c) == 0.625 and Valuation()(end) == 1
    assert Valuation(smoothing=1)(end) == pytest.approx(2 / 3), "a right answer, of one rollout"
    record = Record("q", (), "?", "7", "digit")
    judge_tree(record, tree, lambda record, solutions: [[0.5] * len(split_steps(text)) for text in solutions])
    assert Valuation(1, judge_weight=0.25)(end) == pytest.approx(0.75 * 2 / 3 + 0.25 * 0.5)
    for wrong in ([0.5], [0.5, 0.5, 4.0, 0.5], [math.nan] * 4):
        with pytest.raises(InputError, match="question q: the judge gave"):
            judge_tree(record, tree, lambda record, solutions, wrong=wrong: [wrong] * len(solutions))


LINES = st.sampled_from(["Step 1: a", "Step 2: b", "step 2: B.", "", "x", "</think>", "<answer>7</answer>", "y  y"])
TEXTS = st.lists(LINES, max_size=6).map("\n".join)
ROLLOUTS = st.builds(
    lambda text, reward, is_cut: Rollout(text, 1, is_cut, reward, reward >= 0.5, None),
    TEXTS,
    st.sampled_from([0.0, 0.25, 1.0]),
    st.booleans(),
)


@given(TEXTS)
def test_steps_with_their_blanks_are_the_solution(text):
    steps = cut_steps(text)
    assert [step.strip() for step in steps] == split_steps(text)
    assert "".join(steps) == (text if text.strip() else "")


@given(st.lists(st.lists(ROLLOUTS, min_size=1, max_size=4), min_size=1, max_size=6), st.integers(1, 2))
def test_visits_and_values_agree_in_any_tree(rounds, leaves):
    tree = Tree(RULES)
    for group in rounds:
        for node in tree.select(leaves):
            tree.add(node, group)
    nodes = list(tree.nodes())
    assert tree.rollouts == leaves * sum(map(len, rounds))
    assert tree.root.total == pytest.approx(leaves * sum(each.reward for group in rounds for each in group))
    for node in nodes:
        behind = sum(child.visits for child in node.children.values())
        assert behind + node.ends <= node.visits, "what is cut or does not follow stays at the node"
        assert sum(child.total for child in node.children.values()) <= node.total + 1e-9
        assert 0 <= node.mean <= 1 and (node.visits > 0) and (node is tree.root or 0 < node.drawn <= node.visits)
        assert [step.strip() for step in cut_steps("".join(node.texts))] == [text.strip() for text in node.texts]
    processes = ["".join(node.texts).strip() for node in nodes]
    assert len(set(processes)) == len(processes), "every prefix once"
    again = Tree.from_json(RULES, tree.to_json())
    assert again.to_json() == tree.to_json()
    assert [node.texts for node in again.select(2)] == [node.texts for node in tree.select(2)]
