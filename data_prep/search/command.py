"""`python -m data_prep search`: judged partial solutions by Monte-Carlo tree search over the steps of a policy.

  OUT/trees/*.jsonl     the trees: every node with its text, visits, rewards, answer and whether it is right
  OUT/shards            process records, the splits train and heldout (no question is in both)
  OUT/process.json      the split train in the layout of ViLReward-73K, for `python -m data_prep import`; its pictures
                        lie in OUT/images
  OUT/report.json       counts
  OUT/trees.html        pictures of some trees (`search-page` draws others)

A search that was ended goes on with the same command, and ends with the same files. Several processes, on machines that
share OUT, may grow the trees of one search: each is given `--worker=I/N`; the one that finds all of them whole, or the
same command started once more, exports them.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from vlaa_jax.errors import InputError, check_output

_EPILOG = """examples:
  python -m data_prep search --config=configs/search.py --out=search
  python -m data_prep search --config=configs/search.py:3b --out=DIR --config.model.checkpoint=POLICY \\
      --config.data.questions=SHARDS:rl
  python -m data_prep search-page --search=search --html=trees.html --trees=20
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds both commands to a parser's sub-commands."""
    parser = commands.add_parser(
        "search",
        help="judged partial solutions by tree search with a policy",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="FILE.py[:PRESET]; --config.FIELD=VALUE sets any field of it")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the search")
    parser.add_argument("--trees", type=int, default=12, help="drawn on the page, default %(default)s; 0: no page")
    parser.add_argument("--worker", default="0/1", metavar="I/N", help="this process is number I, from 0, of N")
    parser.set_defaults(run=_search, takes_more=True)

    parser = commands.add_parser("search-page", help="pictures of a search's trees on one page that opens offline")
    parser.add_argument("--search", required=True, type=pathlib.Path, help="folder of a search, finished or under way")
    parser.add_argument("--html", required=True, type=pathlib.Path, help="page to write")
    parser.add_argument("--trees", type=int, default=12, help="how many to draw, default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draw, default %(default)s")
    parser.set_defaults(run=_draw_page)


def _search(arguments: argparse.Namespace) -> None:
    worker, workers = _read_worker(arguments.worker)
    if arguments.trees < 0:
        raise InputError(f"--trees is {arguments.trees}: expected 0 or more")
    from vlaa_jax.config_file import read_config

    config = read_config(
        ["search", f"--config={arguments.config}", *arguments.more],
        accepted="--out=..., --trees=... or --worker=...",
        example="configs/search.py",
        tasks=(),
        needed={
            "model.checkpoint": "a Hugging Face directory of a Qwen2.5-VL or Qwen2-VL",
            "data.questions": "shards as DIRECTORY:SPLIT",
        },
    )
    from data_prep.digit_scenes import demo
    from data_prep.search import settings

    settings.check(config)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.questions = demo.data(config.data.questions)
        config.model.checkpoint = demo.checkpoint(config.model.checkpoint)
    search(config, arguments.out, worker=worker, workers=workers, trees=arguments.trees)


def search(config: Any, out: pathlib.Path, *, worker: int = 0, workers: int = 1, trees: int = 12) -> None:
    """Grows what trees are missing and, when all are there, exports them.

    Args:
      config: of the search, with names resolved to paths.
      out: folder of the search.
      worker, workers: of the chunks this process grows those whose number leaves `worker` when divided by `workers`.
      trees: drawn on the page.

    Raises:
      InputError: questions, checkpoint or judge cannot be used, or `out` holds something else.
    """
    import functools

    import jax

    from data_prep.search import settings
    from data_prep.search.export import Selection, export
    from data_prep.search.folder import REPORT, SearchFolder
    from data_prep.search.rounds import Question, grow
    from data_prep.search.values import judge_tree
    from vlaa_jax.processing.index import count_by_verifier
    from vlaa_jax.rewards import MathPool, load_scorer, require_scorer, score_many
    from vlaa_jax.sharding import row_shards

    folder = SearchFolder(out)
    encoder = settings.encoder(config)
    source, index = settings.open_questions(config, encoder)
    fact_scorer = load_scorer(config.rewards.scorer) if config.rewards.scorer else None
    require_scorer(count_by_verifier(index), fact_scorer)
    devices = jax.devices()
    mesh = settings.mesh(config, devices)
    with jax.set_mesh(mesh) if len(devices) > 1 else contextlib.nullcontext():
        chunks = settings.chunks(config, index)
        made_from = {
            "config": {name: value for name, value in config.to_dict().items() if name != "mesh"},
            "questions": source.fingerprint,
            "policy": _identity(settings.checkpoint(config)),
            "chips": row_shards(),
        }
        folder.begin(json.loads(json.dumps(made_from)))
        if (out / REPORT).exists():
            print(f"{out}: this search is finished; its counts are in {out / REPORT}")
            return
        own = [number for number in folder.missing(len(chunks)) if number % workers == worker]
        count = sum(map(len, chunks))
        print(f"{count:,} questions of {config.data.questions} in {len(chunks)} chunks, {len(own)} to be searched")
        if own:
            policy, judge = settings.policy(config, encoder, index), settings.step_scorer(config)
            plan = settings.plan(config)
            with contextlib.closing(MathPool(config.rewards.math_workers)) as pool:
                verify = functools.partial(score_many, strict=config.rewards.strict, scorer=fact_scorer, pool=pool)
                for number, advance in _progress(own, plan.rounds):
                    began = time.perf_counter()
                    questions = [Question(place, source[place]) for place in chunks[number]]
                    grown = grow(questions, policy, verify, plan, advance)
                    lines = []
                    for question, tree in zip(questions, grown, strict=True):
                        if judge is not None:
                            judge_tree(question.record, tree, judge)
                        lines.append(describe(question, tree))
                    folder.write(number, lines, time.perf_counter() - began)
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
        write_page(folder, out / "trees.html", trees, seed=0)


def describe(question: Any, tree: Any) -> dict[str, Any]:
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


def _draw_page(arguments: argparse.Namespace) -> None:
    check_output("--html", arguments.html)
    if arguments.trees < 1 or arguments.seed < 0:
        raise InputError(
            f"--trees={arguments.trees} --seed={arguments.seed}: expected 1 or more trees and a seed of 0 or more"
        )
    from data_prep.search.folder import SearchFolder

    write_page(SearchFolder(arguments.search), arguments.html, arguments.trees, arguments.seed)


def write_page(folder: Any, path: pathlib.Path, count: int, seed: int) -> None:
    """Draws some of a search's trees, chosen by the seed among those with right and wrong rollouts where there are any.

    Raises:
      InputError: no search, or none of its trees has grown yet.
    """
    import numpy as np

    from data_prep.search.page import page
    from data_prep.search.tree import Rules, Tree
    from vlaa_jax.processing.shards import RecordSource

    config = folder.settings()["config"]
    rules = Rules(**{name: config["search"][name] for name in Rules.__dataclass_fields__})
    found = list(folder.trees())
    if not found:
        raise InputError(f"{folder.path}: none of its trees has grown yet")
    mixed = [stored for stored in found if 0 < stored["right"] < stored["nodes"][0]["visits"]] or found
    chosen = sorted(np.random.default_rng(seed).choice(len(mixed), min(count, len(mixed)), replace=False).tolist())
    source = RecordSource(config["data"]["questions"])
    shown = [(source[mixed[i]["place"]], Tree.from_json(rules, mixed[i])) for i in chosen]
    which = (
        f"{len(shown)} of {len(found):,} trees, drawn with the seed {seed} among those with right and wrong rollouts."
    )
    text = page(f"Search {folder.path.name}", [which], shown)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(text) / 1000:,.0f} kB")


def _read_worker(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise InputError(f"--worker is {text!r}: expected I/N with I from 0 to N - 1")
    return int(number), int(count)


def _progress(numbers: list[int], rounds: int) -> Iterator[tuple[int, Any]]:
    """Numbers of chunks, each with what is to be called after every round; a bar on a terminal, lines in a log."""
    import tqdm

    began = time.monotonic()
    with tqdm.tqdm(total=len(numbers) * rounds, desc="rounds", leave=False, disable=None) as bar:
        for done, number in enumerate(numbers, 1):
            yield number, bar.update
            if not sys.stderr.isatty():
                left = (time.monotonic() - began) / done * (len(numbers) - done)
                line = f"chunk {done} of {len(numbers)}, {tqdm.tqdm.format_interval(left)} left"
                print(line, file=sys.stderr, flush=True)


def _identity(directory: pathlib.Path) -> list:
    """Tells a checkpoint from another one that lies in its folder later."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return [[path.name, path.stat().st_size] for path in files]
