"""The PRM-preference indicator by hand, the quotas, and the whole command on a few questions."""

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_prep.vilbench.construct import construct
from data_prep.vilbench.indicator import accuracy_gap, score_gap
from data_prep.vilbench.quotas import PUBLISHED, Candidate, check_counts, choose, read_quotas
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource, write_records

pytestmark = pytest.mark.quick

# Two judges, two responses of which the second is right.
SCORES = {
    "head": [np.array([0.2, 0.4, 0.9]), np.array([0.8, 0.7])],  # means 0.5 and 0.75, last 0.9 and 0.7
    "rubric": [np.array([4.0, 2.0]), np.array([5.0, 5.0, 2.0])],  # means 3 and 4, last 2 and 2
}
RIGHT = np.array([0.0, 1.0])


def test_the_gap_of_scores():
    assert score_gap(SCORES) == pytest.approx(((0.5 - 0.9) + (0.75 - 0.7) + (3 - 2) + (4 - 2)) / 4)


def test_the_gap_of_picks():
    """By the mean both judges are right; by the last score the head is wrong, and the rubric draws."""
    assert accuracy_gap(SCORES, RIGHT) == (1 + 1) - (0 + 0.5)
    assert accuracy_gap({"head": SCORES["head"]}, RIGHT) == 1
    assert accuracy_gap(SCORES, 1 - RIGHT) == (0 + 0) - (1 + 0.5)


def test_what_was_not_read_is_left_out():
    unread = {"rubric": [np.array([4.0, 2.0]), np.array([np.nan, 2.0])]}
    assert score_gap(unread) == 1
    assert math.isnan(score_gap({"rubric": [np.array([np.nan])]}))


def candidates(source, *indicators):
    return [Candidate(f"{source}-{n}", source, value) for n, value in enumerate(indicators)]


def test_the_highest_of_each_source_ties_by_id():
    found = choose(
        [*reversed(candidates("MMMU Pro", 0.5, 0.5, 0.7, 0.5)), *candidates("MMStar", 1, 2), *candidates("other", 9)],
        {"MMStar": 1, "mmmu-pro": 3},
    )
    assert {name: [candidate.id for candidate in own] for name, own in found.items()} == {
        "MMStar": ["MMStar-1"],
        "mmmu-pro": ["MMMU Pro-2", "MMMU Pro-0", "MMMU Pro-1"],
    }


def test_the_published_quotas():
    assert read_quotas("") == PUBLISHED and sum(PUBLISHED.values()) == 600
    assert read_quotas("MMStar=2, Real World=1") == {"MMStar": 2, "Real World": 1}


@pytest.mark.parametrize("text", ["MMStar", "MMStar=0", "=3", "MMStar=1,mm star=2", "MMStar=-1", "MMStar=1,"])
def test_other_quotas_are_refused(text):
    with pytest.raises(InputError, match="--quotas: "):
        read_quotas(text)


def test_counts_are_compared():
    check_counts({"mmstar": 2, "MMMU_Pro": 1}, {"MMStar": 2, "MMMU-Pro": 1})
    for counts in ({"MMStar": 1, "MMMU-Pro": 1}, {"MMStar": 2}, {"MMStar": 2, "MMMU-Pro": 1, "other": 1}):
        with pytest.raises(InputError, match="expected MMStar 2, MMMU-Pro 1"):
            check_counts(counts, {"MMStar": 2, "MMMU-Pro": 1})


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


# Per question: source, step scores of two judges for a wrong and a right response. Both gaps differ from question to
# question, and rank them differently.
QUESTIONS = {
    "a1": ("A", {"head": [[0.2, 0.4, 0.9], [0.8, 0.7]], "rubric": [[4, 2], [5, 5, 2]]}),  # 0.6625, 1.5
    "a2": ("A", {"head": [[1.0, 0.0], [0.4, 0.4]], "rubric": [[5, 1], [5, 1]]}),  # 1.125, -1
    "a3": ("A", {"head": [[0.5], [0.6]], "rubric": [[3], [3]]}),  # 0, 0
    "b1": ("B", {"head": [[0.5], [0.6]], "rubric": [[3], [3]]}),  # 0, 0
}


@pytest.fixture
def folder(tmp_path):
    records = [
        Record(name, (picture(),), "How many?", "3", "digit", source=source, metadata={"kept": 1})
        for name, (source, _) in QUESTIONS.items()
    ]
    write_records(tmp_path / "shards", {"all": records}, name="questions", version="1.0.0")
    write(tmp_path, QUESTIONS)
    return tmp_path


def write(folder, questions, name="responses.jsonl", **more):
    lines = [
        {"id": name, "model": "m", "responses": ["<answer>2</answer>", "<answer>3</answer>"], "scores": scores, **more}
        for name, (_, scores) in questions.items()
    ]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(folder, variant, quotas, files=("responses.jsonl",), **options):
    paths = [folder / name for name in files]
    return construct(paths, f"{folder / 'shards'}:all", str(folder / "out"), variant=variant, quotas=quotas, **options)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("score-gap", {"b1": 0, "a2": 1.125, "a1": 0.6625}), ("accuracy-gap", {"b1": 0, "a1": 1.5, "a3": 0})],
)
def test_the_chosen_questions_as_shards(folder, variant, expected):
    table = run(folder, variant, {"B": 1, "A": 2})
    records = list(RecordSource(folder / "out:test"))
    assert [record.id for record in records] == list(expected)
    preferences = [record.metadata["prm_preference"] for record in records]
    assert preferences == pytest.approx(list(expected.values()))
    assert [record.metadata["prm_preference_rank"] for record in records] == [1, 1, 2]
    assert {record.metadata["kept"] for record in records} == {1} and records[0].images == (picture(),)
    report = json.loads((folder / "out" / "report.json").read_text())
    assert (report["variant"], report["judges"], report["candidates"]) == (variant, ["head", "rubric"], 4)
    assert [each["id"] for each in report["chosen"]["A"]] == list(expected)[1:]
    assert [row[:3] for row in table.rows] == [["B", "1", "1"], ["A", "3", "2"]]


def test_only_the_named_judges_count(folder):
    run(folder, "accuracy-gap", {"A": 2}, judges=["head"])
    assert [record.metadata["prm_preference"] for record in RecordSource(folder / "out:test")] == [1, 0]


def test_several_models_count_with_their_mean(folder):
    write(folder, {"a3": ("A", {"head": [[1, 0], [1, 0]], "rubric": [[5, 1], [5, 3]]})}, "more.jsonl", model="n")
    run(folder, "score-gap", {"A": 1}, files=("responses.jsonl", "more.jsonl"))
    (record,) = RecordSource(folder / "out:test")
    # a2 has (0.5 + 0 + 2 + 2) / 4 = 1.125; a3 has 0 and (0.5 + 0.5 + 2 + 1) / 4 = 1, so 0.5.
    assert record.id == "a2"
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["candidates"] == 4


@pytest.mark.parametrize(
    ("change", "quotas", "options", "message"),
    [
        (None, {"A": 4}, {}, "A has 3 candidates for a quota of 4"),
        (None, {"C": 1}, {}, "C has 0 candidates for a quota of 1"),
        (
            None,
            {"A": 1},
            {"judges": ["head", "other"]},
            "'other' has not scored the steps of every question; head, rubric",
        ),
        ({"whole": ["head", "rubric"]}, {"A": 1}, {}, "no judge has scored the steps of every question"),
        ({"scores": {}}, {"A": 1}, {}, "no judge has scored the steps of every question"),
        ({"scores": {"head": [[0.5]]}}, {"A": 1}, {}, "a1: expected step scores of each of its 2 responses"),
        ({"id": "zz"}, {"A": 1}, {}, "line 1: no usable record has the id 'zz'"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(folder, change, quotas, options, message):
    if change:
        write(folder, QUESTIONS, **change)
    with pytest.raises(InputError, match=message):
        run(folder, "score-gap", quotas, **options)
    assert sorted(path.name for path in folder.iterdir()) == ["responses.jsonl", "shards"]


@pytest.mark.slow
def test_the_command(folder):
    command = [sys.executable, "-m", "data_prep", "vilbench", "choose", f"--responses={folder / 'responses.jsonl'}"]
    command += [f"--data={folder / 'shards'}:all", f"--out={folder / 'out'}", "--quotas=A=1"]
    done = subprocess.run([*command, "--variant=accuracy-gap"], capture_output=True, text=True)
    assert done.returncode == 0 and "Questions by accuracy-gap" in done.stdout, done.stderr
    assert [record.id for record in RecordSource(folder / "out:test")] == ["a1"]
    done = subprocess.run([*command, "--variant=gap"], capture_output=True, text=True)
    assert done.returncode == 2 and "--variant is 'gap': expected score-gap or accuracy-gap" in done.stderr
