import dataclasses

import numpy as np
import pytest

from data_prep.digit_scenes import builder, controls, demo
from vlaa_jax.processing.shards import RecordSource, write_records
from vlaa_jax.rewards import accuracy, trace

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def records():
    split = dataclasses.replace(builder.SPLITS["heldout"], records=130)
    return list(builder.draw_split("heldout", split, seed=3))


def judged(record, answer):
    verdict = trace(record.verifier, f"<answer>{answer}</answer>", record.answer, example=record)
    return accuracy(verdict, record.verifier)


def test_options_in_another_order_keep_the_question_and_move_the_answer(records):
    generator = np.random.default_rng(0)
    moved = 0
    for record in records:
        permuted = controls.permute_options(record, generator)
        if record.verifier != "mcq":
            assert permuted == record
            continue
        assert permuted.choices != record.choices
        assert sorted(permuted.choices) == sorted(record.choices)
        gold = lambda one: {one.choices["ABCD".index(letter)] for letter in one.answer.split(",")}  # noqa: E731
        assert gold(permuted) == gold(record)
        lines = permuted.question.split("\n")
        assert lines[0] == record.question.split("\n")[0]
        assert lines[1:] == [f"{letter}. {text}" for letter, text in zip("ABCD", permuted.choices, strict=False)]
        assert judged(permuted, permuted.answer)
        moved += permuted.answer != record.answer
    assert moved > 10


def test_the_most_frequent_answer_of_each_kind(records):
    base = records[0]
    of = lambda kind, answer: dataclasses.replace(base, answer=answer, metadata={"kind": kind})  # noqa: E731
    chosen = [of("sum", "12"), of("sum", "9"), of("sum", "9"), of("position", "B")]
    assert controls.most_frequent_answers(chosen) == {"sum": "9", "position": "B"}


def test_a_constant_answer_can_be_read_and_is_seldom_right(records):
    right = []
    for record in records:
        answer = controls.constant_answer(record)
        if record.verifier in ("digit", "math", "mcq"):
            right.append(judged(record, answer))
        elif record.verifier == "iou":
            assert answer.startswith("[0,0,")
        else:
            assert answer == "In the centre there is a 1."
    assert np.mean(right) < 0.3


def row(name, verifier, score):
    return {"id": name, "verifier": verifier, "answers": [{"score": score}]}


def test_tables_compare_on_the_questions_that_both_answered(records, tmp_path, monkeypatch):
    write_records(tmp_path / "scenes", {"heldout": records, "rl": records}, name="scenes", version="1.0.0")
    monkeypatch.setattr(demo, "data", lambda location: f"{tmp_path / 'scenes'}:{location.removeprefix('demo:')}")
    trained = [row(record.id, record.verifier, 1.0) for record in records]
    blank = [row(record.id, record.verifier, 0.0) for record in records]
    permuted = [row(record.id, "mcq", 0.5) for record in records if record.verifier == "mcq"]
    held_out, harder = controls.tables(
        held_out={"trained": trained, "blank": blank, "permuted": permuted},
        seen=[row("x", "digit", 0.75)] * 4,
        harder={"trained": trained, "start": blank},
        seconds={"GRPO": 360.0, "SFT": 350.4},
    )
    lines = {line[0]: line[1:] for line in held_out.rows}
    assert lines["trained"] == ["100.0"] * 6 + ["", "130"]
    assert lines["blank"] == ["0.0"] * 6 + ["-100.0 [-100.0, -100.0]", "130"]
    assert lines["permuted"] == ["50.0", "", "50.0", "", "", "", "-50.0 [-50.0, -50.0]", "40"]
    assert lines["trained, on scenes of its training"][-2:] == ["-25.0 [-25.0, -25.0]", "4"]
    always = lines["always A, whole picture as box"]
    assert 0 < float(always[2]) < 45 and 0 < float(always[4]) < 20
    assert float(lines["most frequent answer"][0]) < 40
    assert "GRPO 360, SFT 350" in held_out.note
    assert [line[0] for line in harder.rows] == ["trained", "start"]


def test_shards_hold_permuted_options_and_no_more_seen_scenes_than_held_out(records, tmp_path, monkeypatch):
    write_records(tmp_path / "scenes", {"heldout": records[:40], "rl": records}, name="scenes", version="1.0.0")
    monkeypatch.setattr(demo, "data", lambda location: f"{tmp_path / 'scenes'}:{location.removeprefix('demo:')}")
    seen = {record.id for record in records[10:]}
    shards = controls.write_shards(tmp_path / "shards", seen=seen, seed=0)
    permuted, scenes = (RecordSource(f"{shards}:{split}") for split in ("permuted", "seen"))
    assert len(permuted) == sum(record.verifier == "mcq" for record in records[:40])
    kinds = [record.metadata["kind"] for record in records[:40]]
    for kind in set(kinds):
        found = [scenes[i].id for i in range(len(scenes)) if scenes[i].metadata["kind"] == kind]
        assert 0 < len(found) <= kinds.count(kind)
        assert set(found) <= seen
    assert controls.write_shards(shards, seen=set(), seed=1) == shards
