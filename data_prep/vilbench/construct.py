"""`python -m data_prep vilbench choose`: the questions on which judges of steps do better than judges of the end.

Reads what `launch/tpu_eval.py --best-of` wrote: several responses to each question with the step scores of several
judges. ViLBench was chosen so out of five benchmarks (section 4 of the paper): 600 of 5,848 questions.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from data_prep.vilbench.indicator import accuracy_gap, score_gap
from data_prep.vilbench.quotas import Candidate, choose
from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.best_of_n.answered import Responses, read_responses, verify
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource, appearing, finish, write_split

VERSION = "1.0.0"
REPORT = "report.json"
SPLIT = "test"
Variant = Literal["score-gap", "accuracy-gap"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def construct(
    files: Sequence[pathlib.Path],
    data: str,
    out: str,
    *,
    variant: Variant,
    quotas: Mapping[str, int],
    judges: Sequence[str] = (),
) -> Table:
    """Writes the chosen questions as shards, by source and falling indicator, with `report.json` beside them.

    Args:
      files: of responses with scores; a question counts with the mean of its indicators over files and models.
      data: shards of the questions, DIRECTORY:SPLIT; their sources are what quotas are for.
      out: directory to make.
      variant: of the indicator.
      quotas: questions of each source.
      judges: that count; all that give step scores where empty.

    Returns:
      What was chosen, by source.

    Raises:
      InputError: `out` exists, a file or a line is wrong, a judge is missing, or a source has too few questions.
    """
    import tqdm

    with appearing(pathlib.Path(out)) as folder:
        source = RecordSource(data)
        ids = {
            record.id: place for place, record in enumerate(tqdm.tqdm(source, desc="ids", leave=False, disable=None))
        }
        responses = [own for path in files for of_model in read_responses(path, ids).values() for own in of_model]
        names = _judges(responses, judges)
        candidates = _candidates(responses, source, ids, variant, names)
        chosen = choose(candidates, quotas)

        def records() -> Iterator[Record]:
            for own in chosen.values():
                for rank, candidate in enumerate(own, 1):
                    record = source[ids[candidate.id]]
                    noted = {"prm_preference": candidate.indicator, "prm_preference_rank": rank}
                    yield dataclasses.replace(record, metadata=record.metadata | noted)

        shards = write_split(folder, SPLIT, records())
        by = f"Chosen by the {variant} of {', '.join(names)}."
        finish(folder, shards, name="vilbench", version=VERSION, description=by)
        content = {
            "variant": variant,
            "judges": names,
            "responses": [path.name for path in files],
            "candidates": len(candidates),
            "chosen": {name: [dataclasses.asdict(each) for each in own] for name, own in chosen.items()},
        }
        (folder / REPORT).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return _table(candidates, chosen, variant, names)


def _judges(responses: Sequence[Responses], wanted: Sequence[str]) -> list[str]:
    """Judges of steps that have scored all questions."""
    counts = collections.Counter(name for own in responses for name in own.scores if name not in own.whole)
    everywhere = sorted(name for name, count in counts.items() if count == len(responses))
    for name in wanted:
        if name not in everywhere:
            raise InputError(
                f"--judges: {name!r} has not scored the steps of every question; {', '.join(everywhere) or 'none'} has"
            )
    if not everywhere:
        raise InputError("no judge has scored the steps of every question in the files of responses")
    return sorted(set(wanted)) or everywhere


def _candidates(
    responses: Sequence[Responses],
    source: RecordSource,
    ids: Mapping[str, int],
    variant: Variant,
    judges: Sequence[str],
) -> list[Candidate]:
    """One for each question, with the mean over its models; a question that no judge could read has none."""
    import tqdm

    verdicts = [None] * len(responses)
    if variant == "accuracy-gap":
        verdicts = [answer.right for answer in verify(responses, lambda name: source[ids[name]])]
    found: dict[str, list[float]] = collections.defaultdict(list)
    sources: dict[str, str] = {}
    pairs = tqdm.tqdm(zip(responses, verdicts, strict=True), "indicators", len(responses), leave=False, disable=None)
    for own, right in pairs:
        sources[own.id] = source[ids[own.id]].source
        scores = {name: own.scores[name] for name in judges}
        if any(len(of_judge) != len(own.texts) for of_judge in scores.values()):
            raise InputError(f"{own.id}: expected step scores of each of its {len(own.texts)} responses")
        value = score_gap(scores) if variant == "score-gap" else accuracy_gap(scores, right)
        if not np.isnan(value):
            found[own.id].append(value)
    return [Candidate(name, sources[name], float(np.mean(values))) for name, values in found.items()]


def _table(
    candidates: Sequence[Candidate], chosen: Mapping[str, Sequence[Candidate]], variant: Variant, judges: Sequence[str]
) -> Table:
    total = collections.Counter(candidate.source for candidate in candidates)
    rows = []
    for name, own in chosen.items():
        values = [candidate.indicator for candidate in own]
        count = total[own[0].source]
        rows.append([name, str(count), str(len(own)), f"{np.mean(values):.4g}", f"{values[-1]:.4g}"])
    header = ["source", "candidates", "chosen", "mean indicator", "lowest"]
    return Table(f"Questions by {variant}", header, rows, f"Judges: {', '.join(judges)}.")
