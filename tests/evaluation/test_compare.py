import numpy as np
import pytest

from vlaa_jax.evaluation.compare import best_of, compare, tables, to_json
from vlaa_jax.evaluation.evaluate import Answer, Result
from vlaa_jax.evaluation.tables import text_table
from vlaa_jax.processing.records import Record
from vlaa_jax.rewards import Trace


def result(verifier: str, kind: str, *scores: float | None) -> Result:
    """A record with one answer a score; None is an answer that is not valid."""
    answers = [
        Answer(
            "text",
            10 * (place + 1),
            score is None,
            Trace(valid=score is not None, rule="rule", score=score or 0.0, extracted=None, seconds=0.0),
        )
        for place, score in enumerate(scores)
    ]
    return Result(Record("id", (), "", "", verifier, metadata={"kind": kind} if kind else {}), answers)


RESULTS = [result("digit", "count", 1.0, None), result("digit", "sum", 0.0, 0.0), result("iou", "sum", 0.4, 0.8)]


@pytest.mark.quick
def test_figures_by_verifier_and_kind():
    compared = compare(RESULTS)
    assert list(compared["verifier"]) == ["all", "digit", "iou"]
    assert list(compared["kind"]) == ["count", "sum"]
    values = {
        name: round(value["value"], 4) if isinstance(value, dict) else value
        for name, value in to_json(compared)["verifier"]["all"].items()
    }
    assert values == {
        "records": 3,
        "reward": round((0.5 + 0 + 0.6) / 3, 4),
        "valid": round(5 / 6, 4),
        "accuracy": round(2 / 6, 4),
        "length": 15.0,
        "truncated": round(1 / 6, 4),
        "reward_if_valid": round(2.2 / 5, 4),
        "best_of": 0.6,
    }
    reward = compared["verifier"]["all"]["reward"]
    assert reward.low == 0.0
    assert reward.high == pytest.approx(0.6)


@pytest.mark.quick
def test_tables_have_points_of_100_and_a_dash_where_nothing_was_valid():
    by_verifier, by_kind = tables("Answers", compare([result("digit", "count", None), result("iou", "sum", 1.0)]), 1)
    assert by_verifier.header == [
        "verifier", "records", "reward", "valid", "reward if valid", "accuracy", "truncated", "length"
    ]  # fmt: skip
    assert by_kind.rows[0] == ["count", "1", "0.0 [0.0, 0.0]", "0.0", "-", "0.0", "100.0", "10"]
    assert by_kind.rows[1] == [
        "sum",
        "1",
        "100.0 [100.0, 100.0]",
        "100.0",
        "100.0 [100.0, 100.0]",
        "100.0",
        "0.0",
        "10",
    ]
    assert "Answers, by kind" in text_table(by_kind)
    assert "best of 2" in tables("Answers", compare(RESULTS), 2)[0].header


@pytest.mark.quick
def test_records_without_a_kind_have_one_table():
    assert list(compare([result("digit", "", 1.0)])) == ["verifier"]


@pytest.mark.quick
def test_best_of_takes_the_best_sample_of_each_record():
    np.testing.assert_array_equal(best_of(np.asarray([[0.1, 0.7], [0.4, 0.2]])), [0.7, 0.4])
