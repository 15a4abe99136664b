"""`python -m data_prep digit-scenes` and `digit-policy`: the demo's shards, and the policy that its SFT starts from."""

import argparse
import dataclasses

from data_prep.digit_scenes import builder
from vlaa_jax.errors import InputError


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds both commands to a parser's sub-commands."""
    parser = commands.add_parser("digit-scenes", help="handwritten digits on coloured grounds, with questions")
    parser.add_argument("--out", required=True, help="directory to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--splits",
        default=",".join(builder.SPLITS),
        help="comma-separated NAME or NAME=RECORDS, default %(default)s",
    )
    parser.set_defaults(run=_write_scenes)

    parser = commands.add_parser("digit-policy", help="a small policy whose vision tower finds handwritten digits")
    parser.add_argument("--out", required=True, help="directory to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-updates", type=int, default=1000, help="default %(default)s; 0 leaves it random")
    parser.set_defaults(run=_write_policy)


def _write_scenes(arguments: argparse.Namespace) -> None:
    builder.build(arguments.out, seed=arguments.seed, splits=parse_splits(arguments.splits))


def _write_policy(arguments: argparse.Namespace) -> None:
    if arguments.tower_updates < 0:
        raise InputError(f"--tower-updates is {arguments.tower_updates}: expected 0 or more")
    from data_prep.digit_scenes import policy  # JAX and the model take seconds, which no other command should wait for

    policy.write_policy(arguments.out, tower_updates=arguments.tower_updates, seed=arguments.seed)


def parse_splits(text: str) -> dict[str, builder.Split]:
    """Reads `sft=2000,rl`: splits of `builder.SPLITS`, with another number of records where one is given."""
    splits = {}
    for part in text.split(","):
        name, equals, records = part.strip().partition("=")
        if name not in builder.SPLITS:
            raise InputError(f"--splits: {name!r} is none of {', '.join(builder.SPLITS)}")
        if equals and not (records.isdecimal() and int(records) > 0):
            raise InputError(f"--splits: {part.strip()!r}: expected a number of records above 0 after '='")
        split = builder.SPLITS[name]
        splits[name] = dataclasses.replace(split, records=int(records)) if equals else split
    return splits
