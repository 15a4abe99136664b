"""Commands that build data sets: `python -m data_prep COMMAND --help`."""

import argparse

from data_prep import check, from_jsonl, leaks, show, stats
from data_prep.build import command as build
from data_prep.digit_scenes import command as digit_scenes
from data_prep.perplexity import rank, score
from data_prep.released import command as released
from data_prep.search import command as search
from data_prep.vilbench import command as vilbench
from vlaa_jax.errors import run_command


def main() -> int | None:
    """Runs one command; its result is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    parser.set_defaults(takes_more=False)  # a config's fields, which the parser cannot know
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (build, released, from_jsonl, digit_scenes, stats, show, check, leaks, score, rank, search, vilbench):
        module.add_command(commands)
    arguments, more = parser.parse_known_args()
    if more and not arguments.takes_more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    arguments.more = more
    return arguments.run(arguments)


if __name__ == "__main__":
    run_command(main)
