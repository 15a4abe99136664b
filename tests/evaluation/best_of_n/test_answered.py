import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.best_of_n.answered import (
    Judged,
    Responses,
    from_results,
    read_responses,
    stored_scores,
    to_lines,
    verify,
)
from vlaa_jax.evaluation.evaluate import Answer, Result
from vlaa_jax.processing.images import Resize
from vlaa_jax.processing.records import Record
from vlaa_jax.rewards import Trace

pytestmark = pytest.mark.quick

RECORDS = {
    "a": Record("a", (), "How many?", "3", "digit"),
    "b": Record("b", (), "Which?", "B", "mcq", choices=("red", "blue")),
}
PLACES = {"a": 0, "b": 1}
RIGHT, WRONG, NONE = "<answer>3</answer>", "<answer>4</answer>", "three"


def written(tmp_path, *lines, name="model.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_lines_are_read_by_model_in_the_order_of_the_records(tmp_path):
    path = written(
        tmp_path,
        {"id": "b", "responses": ["x", "half \ud800 a pair"]},
        "",
        {"id": "a", "responses": ["y"], "greedy": "z"},
        {"id": "a", "responses": ["w"], "model": "other"},
    )
    found = read_responses(path, PLACES)
    assert found == {
        "model": [Responses("a", ("y",), "z"), Responses("b", ("x", "half ? a pair"))],
        "other": [Responses("a", ("w",))],
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1: expected an object with id and responses"),
        ({"id": "a"}, "line 1: `responses` must be a list of texts"),
        ({"id": "a", "responses": []}, "line 1: `responses` must be a list of texts, one at least"),
        ({"id": "a", "responses": [1]}, "line 1: `responses` must be a list of texts"),
        ({"id": 1, "responses": ["x"]}, "line 1: `id` must be a text"),
        ({"responses": ["x"]}, "line 1: `id` must be a text"),
        ({"id": "a", "responses": ["x"], "greedy": ["x"]}, "line 1: `greedy` must be a text"),
        ({"id": "c", "responses": ["x"]}, "line 1: no usable record has the id 'c'"),
        ({"id": "a", "responses": ["x"], "scores": {"j": [["high"]]}}, "line 1: `scores` must hold"),
        ({"id": "a", "responses": ["x"], "scores": {"j": [[]]}}, "line 1: `scores` must hold"),
        ({"id": "a", "responses": ["x"], "scores": {"j": [[1], [1]]}}, "line 1: `scores` must hold"),
        ({"id": "a", "responses": ["x"], "scores": [1]}, "line 1: `scores` must hold"),
        ("", "holds no responses"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    with pytest.raises(InputError) as refused:
        read_responses(written(tmp_path, line), PLACES)
    assert message in str(refused.value) and "model.jsonl" in str(refused.value)


def test_two_lines_for_one_record_and_no_file(tmp_path):
    line = {"id": "a", "responses": ["x"]}
    with pytest.raises(InputError, match="line 2: 'a' has responses of model already"):
        read_responses(written(tmp_path, line, line), PLACES)
    with pytest.raises(InputError, match="no response file"):
        read_responses(tmp_path / "none.jsonl", PLACES)


def test_verdicts_are_those_of_the_reward():
    responses = [Responses("a", (RIGHT, WRONG, NONE), RIGHT), Responses("b", ("<answer>(b)</answer>",))]
    first, second = verify(responses, RECORDS.__getitem__)
    assert first.right.tolist() == [1, 0, 0] and first.rewards.tolist() == [1, 0, 0]
    assert [trace.normal_form for trace in first.traces] == ["3", "4", ""]
    assert first.greedy[0] == RIGHT and first.greedy[1].score == 1 and second.greedy is None
    assert second.right.tolist() == [1]


def test_boxes_are_in_pixels_of_what_the_model_saw():
    out = io.BytesIO()
    Image.new("RGB", (100, 50)).save(out, "PNG")
    box = Record("a", (out.getvalue(),), "Where?", "[10, 10, 50, 40]", "iou", box_space="pixels")
    responses = [Responses("a", ("<answer>[10, 10, 50, 40]</answer>", "<answer>[20, 20, 100, 80]</answer>"))]
    (as_stored,) = verify(responses, lambda name: box)
    (doubled,) = verify(responses, lambda name: box, resize=lambda size: Resize(size, (2 * size[0], 2 * size[1])))
    assert as_stored.right.tolist() == [1, 0] and doubled.right.tolist() == [0, 1]
    assert as_stored.record.images == ()


def test_what_is_written_is_read_with_its_scores(tmp_path):
    responses = [Responses("a", (RIGHT, WRONG), NONE), Responses("b", ("x", "x"))]
    scores = {
        "steps": [[np.array([0.25, np.nan]), np.array([1 / 3])], [np.array([0.5]), np.array([0.5])]],
        "whole": [[np.array([-2.0]), np.array([1e-9])], [np.array([np.nan]), np.array([0.0])]],
    }
    judged = Judged("tiny", tuple(verify(responses, RECORDS.__getitem__)), scores, frozenset({"whole"}))
    path = written(tmp_path, *to_lines(judged))
    again = read_responses(path, PLACES)["tiny"]
    assert [dataclasses.replace(own, scores={}, whole=()) for own in again] == responses
    stored = stored_scores("tiny", verify(again, RECORDS.__getitem__), again)
    assert stored.whole == {"whole"} and list(stored.scores) == ["steps", "whole"]
    for judge, of_judge in scores.items():
        for question, own in zip(of_judge, stored.scores[judge], strict=True):
            for one, two in zip(question, own, strict=True):
                np.testing.assert_array_equal(one, two)
    assert to_lines(stored) == to_lines(judged)
    first = json.loads(to_lines(judged)[0])
    assert first["verdicts"][0] == {"right": True, "valid": True, "normal_form": "3", "rule": "equal", "score": 1.0}
    assert first["greedy_verdict"]["valid"] is False


def test_scores_that_some_lines_lack_are_left_out(tmp_path):
    lines = [{"id": "a", "responses": ["x"], "scores": {"j": [[1]], "k": [[2]]}}, {"id": "b", "responses": ["x"]}]
    lines[1]["scores"] = {"k": [[3]]}
    found = read_responses(written(tmp_path, *lines), PLACES)["model"]
    assert list(stored_scores("model", verify(found, RECORDS.__getitem__), found).scores) == ["k"]


def test_answers_of_an_evaluation():
    trace = Trace(valid=True, normal_form="3", rule="equal", score=1.0, extracted="3", seconds=0.0)
    sampled = [Result(RECORDS["a"], [Answer("x", 3, False, trace), Answer("y", 4, True, trace)])]
    greedy = [Result(RECORDS["a"], [Answer("z", 3, False, trace)])]
    (with_greedy,), (without,) = from_results(sampled, greedy), from_results(sampled, None)
    assert with_greedy.texts == ("x", "y") and with_greedy.greedy == ("z", trace)
    assert without.greedy is None and without.traces == (trace, trace)
