"""A search from its config to its files: chunks of trees grow one after the other, then all are exported."""

import contextlib
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from data_prep.search import settings
from data_prep.search.export import Selection, export
from data_prep.search.folder import REPORT, SearchFolder
from data_prep.search.page import page
from data_prep.search.rounds import Question, grow
from data_prep.search.tree import Rules, Tree
from data_prep.search.values import judge_tree
from vlaa_jax.errors import InputError
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.index import Index, count_by_verifier
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.rewards import MathPool, Scorer, load_scorer, require_scorer, score_many
from vlaa_jax.sharding import row_shards

PAGE = "trees.html"


def search(config: ConfigDict, out: pathlib.Path, *, worker: int = 0, workers: int = 1, trees: int = 12) -> None:
    """Grows the trees that are missing and, when all are there, exports them.

    Args:
      config: of the search, with names resolved to paths.
      out: folder of the search.
      worker, workers: this process grows the chunks whose number divided by `workers` leaves `worker`.
      trees: drawn on the page; 0 for no page.

    Raises:
      InputError: questions, checkpoint or judge cannot be used, or `out` holds something else.
    """
    folder = SearchFolder(out)
    encoder = settings.encoder(config)
    source, index = settings.open_questions(config, encoder)
    scorer = load_scorer(config.rewards.scorer) if config.rewards.scorer else None
    require_scorer(count_by_verifier(index), scorer)
    devices = jax.devices()
    mesh = settings.mesh(config, devices)
    with jax.set_mesh(mesh) if len(devices) > 1 else contextlib.nullcontext():
        chunks = settings.chunks(config, index)
        folder.begin(_made_from(config, source))
        if (out / REPORT).exists():
            print(f"{out}: this search is finished; its counts are in {out / REPORT}")
            return
        own = [number for number in folder.missing(len(chunks)) if number % workers == worker]
        count = sum(map(len, chunks))
        print(f"{count:,} questions of {config.data.questions} in {len(chunks)} chunks, {len(own)} to be searched")
        if own:
            _grow_all(config, folder, source, {number: chunks[number] for number in own}, encoder, index, scorer)
    if left := folder.missing(len(chunks)):
        print(f"{len(left)} of {len(chunks)} chunks are still to be searched, by other workers")
        return
    section = config.export
    report = export(
        folder,
        source,
        settings.plan(config).rules,
        Selection(section.drop_decided, section.least_visits),
        settings.valuation(config),
        heldout=section.heldout,
        seed=config.seed,
        name=section.name,
        version=section.version,
        records_per_shard=section.records_per_shard,
    )
    print(report.table())
    if trees:
        write_page(folder, out / PAGE, trees, seed=0)


def _made_from(config: ConfigDict, source: RecordSource) -> dict[str, Any]:
    """All that the files of a search depend on: on how many chips rows are split, but not how."""
    files = sorted(path for path in settings.checkpoint(config).iterdir() if path.is_file())
    made_from = {
        "config": {name: value for name, value in config.to_dict().items() if name != "mesh"},
        "questions": source.fingerprint,
        "policy": [[path.name, path.stat().st_size] for path in files],
        "chips": row_shards(),
    }
    return json.loads(json.dumps(made_from))  # tuples are lists there


def _grow_all(
    config: ConfigDict,
    folder: SearchFolder,
    source: RecordSource,
    chunks: dict[int, list[int]],
    encoder: Encoder,
    index: Index,
    scorer: Scorer | None,
) -> None:
    """Grows the trees of some chunks, places of questions by number, and keeps them."""
    policy, judge, plan = settings.policy(config, encoder, index), settings.step_scorer(config), settings.plan(config)
    with contextlib.closing(MathPool(config.rewards.math_workers)) as pool:
        verify = functools.partial(score_many, strict=config.rewards.strict, scorer=scorer, pool=pool)
        for number, advance in _progress(list(chunks), plan.rounds):
            began = time.perf_counter()
            questions = [Question(place, source[place]) for place in chunks[number]]
            lines = []
            for question, tree in zip(questions, grow(questions, policy, verify, plan, advance), strict=True):
                if judge is not None:
                    judge_tree(question.record, tree, judge)
                lines.append(describe(question, tree))
            folder.write(number, lines, time.perf_counter() - began)


def describe(question: Question, tree: Tree) -> dict[str, Any]:
    """A line of the dump."""
    record = question.record
    return {
        "id": record.id,
        "place": question.place,
        "verifier": record.verifier,
        "question": record.question,
        "gold": record.answer,
        **tree.to_json(),
    }


def _progress(numbers: list[int], rounds: int) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Numbers of chunks, each with what is to be called after every round; a bar on a terminal, lines in a log."""
    began = time.monotonic()
    with tqdm.tqdm(total=len(numbers) * rounds, desc="rounds", leave=False, disable=None) as bar:
        for done, number in enumerate(numbers, 1):
            yield number, bar.update
            if not sys.stderr.isatty():
                left = (time.monotonic() - began) / done * (len(numbers) - done)
                line = f"chunk {done} of {len(numbers)}, {tqdm.tqdm.format_interval(left)} left"
                print(line, file=sys.stderr, flush=True)


def write_page(folder: SearchFolder, path: pathlib.Path, count: int, seed: int) -> None:
    """Draws some of a search's trees, chosen by the seed among those with right and wrong rollouts where there are any.

    Raises:
      InputError: no search, or none of its trees has grown yet.
    """
    config = folder.settings()["config"]
    rules = Rules(**{name: config["search"][name] for name in Rules.__dataclass_fields__})
    found = list(folder.trees())
    if not found:
        raise InputError(f"{folder.path}: none of its trees has grown yet")
    mixed = [stored for stored in found if 0 < stored["right"] < stored["nodes"][0]["visits"]] or found
    chosen = sorted(np.random.default_rng(seed).choice(len(mixed), min(count, len(mixed)), replace=False).tolist())
    source = RecordSource(config["data"]["questions"])
    shown = [(source[mixed[i]["place"]], Tree.from_json(rules, mixed[i])) for i in chosen]
    which = f"{len(shown)} of {len(found):,} trees, drawn with the seed {seed}; their rollouts are right and wrong."
    text = page(f"Search {folder.path.name}", [which], shown)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(text) / 1000:,.0f} kB")
