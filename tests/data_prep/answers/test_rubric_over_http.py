"""A rubric judge that asks an endpoint over HTTP."""

import base64
import io
import json
import pathlib

import loopback
import numpy as np
from PIL import Image

from data_prep.answers.ledger import open_ledger
from data_prep.answers.rubric import kept_answering, one_picture, open_rubric
from vlaa_jax.evaluation.judges.judge import Question
from vlaa_jax.evaluation.judges.open import open_judge
from vlaa_jax.evaluation.judges.open_scorer import open_scorer
from vlaa_jax.processing.records import Record


def picture(colour: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


ONE = Record("one", (picture("red", (30, 20)),), "How many?", "3", "digit")
TWO = Record("two", (picture("red", (30, 20)), picture("blue", (10, 40))), "<image> or <image>?", "3", "digit")
RESPONSE = "Step 1: centre 3\nStep 2: count 1"


def grades(request, number):
    """5 where the second step is to be judged, 2 for the first, and at first no grade for what has two pictures."""
    prompt, pictures, _ = loopback.read(request)
    assert pictures == 1 and request["temperature"] == 0
    if "[image 2]" in prompt and "one of the numbers 1, 2, 3, 4, 5" not in prompt:
        return loopback.completion(request, "Reasoning: good\nOverall Score: 4.5")
    return loopback.completion(request, f"Reasoning: so\nOverall Score: {5 if 'Step 2' in prompt else 2}")


def opened(server, folder: pathlib.Path, model: str = "grader"):
    ask = lambda model: open_rubric(  # noqa: E731
        model, base_url=server.base_url, cache=str(folder / "cache"), ledger=str(folder / "ledger.sqlite")
    )
    return open_judge(f"rubric:{model}", answering=ask)


def test_grades_come_over_http_and_are_asked_for_once(server, tmp_path):
    server.reply = grades
    judge = opened(server, tmp_path)
    questions = [Question(ONE, (RESPONSE, RESPONSE)), Question(TWO, (RESPONSE,))]
    scores = judge(questions)
    assert [[own.tolist() for own in of_question] for of_question in scores] == [[[2, 5], [2, 5]], [[2, 5]]]
    assert judge.problems == {"asked once more": 2} and judge.name == "rubric:grader"
    assert server.asked == {"grader": 6}
    sent = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size for url in urls(server)]
    assert sorted(set(sent)) == [(30, 20), (48, 40)]
    again = opened(server, tmp_path)(questions)
    np.testing.assert_array_equal(again[1][0], scores[1][0])
    assert server.asked == {"grader": 6}, "all replies were stored"
    (total,) = open_ledger(str(tmp_path / "ledger.sqlite")).summary()
    assert (total.stage, total.requests, total.cached) == ("judge", 6, 6)


def urls(server) -> list[str]:
    parts = [part for _, request in server.received for message in request["messages"] for part in message["content"]]
    return [part["image_url"]["url"] for part in parts if isinstance(part, dict) and part["type"] == "image_url"]


def test_an_endpoint_that_does_not_answer_leaves_the_score_unknown(server, tmp_path):
    server.reply = lambda request, number: loopback.failed(400, json.dumps("bad"))
    judge = opened(server, tmp_path)
    ((scores,),) = judge([Question(ONE, ("Step 1: centre 3",))])
    assert np.isnan(scores).all()
    assert judge.problems == {"asked once more": 1, "no score in the reply": 1}


def test_as_a_scorer_it_gives_the_mean_grade_and_finds_its_replies_again(server, tmp_path, monkeypatch):
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path))
    server.reply = grades
    for _ in range(2):
        scorer = open_scorer("rubric:grader", answering=kept_answering(server.base_url, ""))
        assert scorer.score_batch([(ONE, [RESPONSE, "three"])]) == [[3.5, 2.0]]
    assert server.asked == {"grader": 3}


def test_pictures_stand_side_by_side_on_white():
    whole = Image.open(io.BytesIO(one_picture(TWO.images)))
    assert whole.size == (30 + 8 + 10, 40)
    places = [(0, 0), (29, 19), (29, 20), (30, 0), (38, 0), (47, 39)]
    assert [whole.getpixel(place) for place in places] == [
        (255, 0, 0), (255, 0, 0), (255, 255, 255), (255, 255, 255), (0, 0, 255), (0, 0, 255)
    ]  # fmt: skip
    assert one_picture(()) is None and one_picture(ONE.images) == ONE.images[0]
