"""Human marks of the first wrong step: 540 solutions of competition problems by four models (CHAMP, arXiv 2401.06961).

Optional: `pip install --no-deps champ-dataset==1.0.0` (7.6 MB).
"""

import importlib.metadata
import json
import pathlib

import numpy as np
import pytest

from vlaa_jax.evaluation.step_judgement import JudgedSolution, first_wrong_metrics
from vlaa_jax.processing.steps import cut_steps, split_steps


@pytest.fixture(scope="module")
def marked() -> list[tuple[str, int | None]]:
    """Texts, and the place in each where the first wrong step begins."""
    try:
        package = importlib.metadata.distribution("champ-dataset")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("champ-dataset is not installed")
    problems = json.loads(pathlib.Path(package.locate_file("champ_dataset/dataset_files/v0.json")).read_bytes())
    found = [mark for problem in problems["problems"].values() for mark in problem["fws_annotations"].values()]
    return [(mark["text"], mark["start_idx"]) for mark in found]


def wrong_step(text: str, start: int | None) -> int:
    """Place of the step that holds a character, -1 for none."""
    if start is None:
        return -1
    ends = np.cumsum([len(step) for step in cut_steps(text)])
    return int(np.searchsorted(ends, start, side="right"))


def test_the_prefix_up_to_a_marked_step_has_the_first_steps_of_the_whole(marked):
    assert len(marked) == 540 and sum(start is not None for _, start in marked) == 444
    for text, start in marked:
        steps, place = cut_steps(text), wrong_step(text, start)
        assert "".join(steps) == text and all(step.strip() for step in steps)
        prefix = "".join(steps[: place + 1])
        assert split_steps(prefix) == split_steps(text)[: place + 1]
        assert start is None or len("".join(steps[:place])) <= start < len(prefix)


def test_judges_whose_figures_are_known(marked):
    truth = [wrong_step(text, start) for text, start in marked]
    counts = [len(cut_steps(text)) for text, _ in marked]

    def judged(scores: list[np.ndarray]) -> dict[str, float]:
        unknown = [np.full(len(own), np.nan) for own in scores]
        solutions = zip(scores, unknown, truth, strict=True)
        return first_wrong_metrics([JudgedSolution(own, none, own > -1, first) for own, none, first in solutions])

    right = [count if first < 0 else first for count, first in zip(counts, truth, strict=True)]
    knowing = judged([(np.arange(count) < first) * 1.0 for count, first in zip(counts, right, strict=True)])
    assert knowing == {"accuracy_with": 1, "accuracy_without": 1, "f1": 1, "auroc": 1}
    trusting = judged([np.ones(count) for count in counts])
    assert trusting == {"accuracy_with": 0, "accuracy_without": 1, "f1": 0, "auroc": 0.5}
    doubting = judged([np.zeros(count) for count in counts])
    assert doubting["accuracy_with"] == pytest.approx(truth.count(0) / 444) and doubting["accuracy_without"] == 0
    generator = np.random.default_rng(0)
    guessing = judged([generator.random(count) for count in counts])
    assert abs(guessing["auroc"] - 0.5) < 0.06
