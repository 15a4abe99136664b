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
import pathlib

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
        tasks=("search",),
        needed={
            "model.checkpoint": "a Hugging Face directory of a Qwen2.5-VL or Qwen2-VL",
            "data.questions": "shards as DIRECTORY:SPLIT",
        },
    )
    from data_prep.digit_scenes import demo
    from data_prep.search import settings
    from data_prep.search.search import search

    settings.check(config)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.questions = demo.data(config.data.questions)
        config.model.checkpoint = demo.checkpoint(config.model.checkpoint)
    search(config, arguments.out, worker=worker, workers=workers, trees=arguments.trees)


def _draw_page(arguments: argparse.Namespace) -> None:
    check_output("--html", arguments.html)
    if arguments.trees < 1 or arguments.seed < 0:
        raise InputError(
            f"--trees={arguments.trees} --seed={arguments.seed}: expected 1 or more trees and a seed of 0 or more"
        )
    from data_prep.search.folder import SearchFolder
    from data_prep.search.search import write_page

    write_page(SearchFolder(arguments.search), arguments.html, arguments.trees, arguments.seed)


def _read_worker(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise InputError(f"--worker is {text!r}: expected I/N with I from 0 to N - 1")
    return int(number), int(count)
