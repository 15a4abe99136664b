"""`python -m data_prep vilbench`: build such a benchmark (`choose`), or read the released one (`import`)."""

import argparse
import pathlib

from data_prep.vilbench.quotas import PUBLISHED, read_quotas
from vlaa_jax.errors import InputError

_QUOTAS = ",".join(f"{name}={count}" for name, count in PUBLISHED.items())


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser's sub-commands."""
    parser = commands.add_parser(
        "vilbench", help="questions that prefer process rewards: choose them, or import the 600"
    )
    kinds = parser.add_subparsers(required=True, metavar="KIND")

    choose = kinds.add_parser(
        "choose", help="from responses that judges have scored, as launch/tpu_eval.py writes them"
    )
    choose.add_argument(
        "--responses",
        required=True,
        action="append",
        type=pathlib.Path,
        metavar="FILE.jsonl",
        help="with step scores; may be given again",
    )
    choose.add_argument("--data", required=True, metavar="DIR:SPLIT", help="shards of the questions")
    choose.add_argument(
        "--variant",
        default="score-gap",
        metavar="NAME",
        help="score-gap: mean step score less last one; accuracy-gap: judges that pick right by the one and not by the "
        "other (default: %(default)s)",
    )
    choose.add_argument("--judges", default="", metavar="NAME,...", help="that count; by default all that score steps")
    _add_common(choose)
    choose.set_defaults(run=_choose)

    released = kinds.add_parser("import", help="the released questions, as JSON, JSON Lines or parquet")
    released.add_argument("--file", required=True, type=pathlib.Path, help="of the questions")
    released.add_argument(
        "--images", type=pathlib.Path, default=pathlib.Path(), help="folder of the pictures, unless the file holds them"
    )
    released.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help="of id, image, question, answer, source, choices: how the file calls it; may be given again",
    )
    _add_common(released)
    released.set_defaults(run=_import)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quotas", default="", metavar="SOURCE=NUMBER,...", help=f"questions by source ({_QUOTAS})")
    parser.add_argument("--out", required=True, help="directory to make")


def _choose(arguments: argparse.Namespace) -> None:
    from data_prep.vilbench.construct import SPLIT, VARIANTS, construct
    from vlaa_jax.evaluation.tables import text_table

    if arguments.variant not in VARIANTS:
        raise InputError(f"--variant is {arguments.variant!r}: expected {' or '.join(VARIANTS)}")
    table = construct(
        arguments.responses,
        arguments.data,
        arguments.out,
        variant=arguments.variant,
        quotas=read_quotas(arguments.quotas),
        judges=[name.strip() for name in arguments.judges.split(",") if name.strip()],
    )
    print(f"{text_table(table)}\n\nshards: {arguments.out}:{SPLIT}")


def _import(arguments: argparse.Namespace) -> None:
    from data_prep.vilbench.released import SPLIT, import_released

    columns = {}
    for text in arguments.column:
        field, equals, name = text.partition("=")
        if not (field and equals and name):
            raise InputError(f"--column is {text!r}: expected FIELD=NAME")
        columns[field] = name
    counts = import_released(
        arguments.file, arguments.images, arguments.out, columns=columns, quotas=read_quotas(arguments.quotas)
    )
    print(f"{sum(counts.values())} questions in {arguments.out}:{SPLIT}")
