"""`python -m data_prep build`: VLAA-Thinking from its public sources, in six steps.

  1 collect   questions of every source that has a folder        4 rewrite   the reasoning speaks of the image
  2 caption   the image in words                                 5 verify    the answer agrees with the gold
  3 distil    a text-only reasoner thinks and answers            6 curate    SFT and RL, shards of records

Each step writes its own folder below OUT/steps; what cannot go on is kept there too, with the reason. Answers of models
are kept in OUT/cache: a build that was ended goes on with the same command, and nothing is paid for twice.

Keys of the endpoints come from the environment variables that config.STEP.key_variable names.

Workers on several machines, which any runner of Beam may have, need
  --out=gs://BUCKET/FOLDER    for steps, answers, ledger and shards: the budget is then of all workers together, and
                              a killed one counts as having spent what it had taken for its next requests
  on every worker             pip install 'vlaa_jax[data,gcs]' 'apache-beam[gcp]', in an image for instance; the keys in
                              its environment; the sources' folders under the same paths, on a shared disk or in a
                              bucket that is mounted (Cloud Storage FUSE): sources are not read from gs:// itself
config.STEP.concurrency, requests_a_minute and tokens_a_minute are of one worker process.
"""

import argparse
import logging

from vlaa_jax.errors import InputError

_EPILOG = r"""examples:
  python -m data_prep build --config=configs/vlaa_thinking.py --out=DIR --config.sources.arxivqa.folder=FOLDER
  python -m data_prep build ... --steps=1                 questions alone: what would be asked, nothing is paid
  python -m data_prep build ... --config.budget=200       stops before more is spent
  python -m data_prep build ... -- --direct_num_workers=8
  python -m data_prep build ... --out=gs://BUCKET/FOLDER --runner=FlinkRunner -- --flink_master=HOST:PORT
  python -m data_prep build ... --out=gs://BUCKET/FOLDER --runner=DataflowRunner -- --project=PROJECT \
      --region=REGION --temp_location=gs://BUCKET/FOLDER/temp --sdk_container_image=IMAGE
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser's sub-commands."""
    parser = commands.add_parser(
        "build",
        help="VLAA-Thinking from its public sources, by models behind endpoints",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="FILE.py; --config.FIELD=VALUE sets any field of it")
    parser.add_argument("--out", required=True, help="folder of the build, or gs://BUCKET/FOLDER")
    parser.add_argument("--steps", default="all", help="numbers of the steps to run, as 1,2,3; default %(default)s")
    parser.add_argument(
        "--runner", help="of Apache Beam; default: threads of this machine. Its options follow after --"
    )
    parser.set_defaults(run=_run, takes_more=True)


def _run(arguments: argparse.Namespace) -> None:
    place = arguments.more.index("--") if "--" in arguments.more else len(arguments.more)
    fields, options = arguments.more[:place], arguments.more[place + 1 :]
    steps = _read_steps(arguments.steps)
    from vlaa_jax.config_file import read_config

    config = read_config(
        ["build", f"--config={arguments.config}", *fields],
        accepted="--out=..., --steps=... or --runner=...",
        example="configs/vlaa_thinking.py",
        tasks=(),
        needed={},
    )
    # Beam warns of its parts for Google Cloud when they are not installed.
    logging.getLogger().addFilter(lambda record: "apitools" not in record.getMessage())
    try:
        from data_prep.build.build import build
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install 'vlaa_jax[data]'") from None
    if arguments.runner:
        options = [f"--runner={arguments.runner}", *options]
    print(build(config, arguments.out, steps=steps, options=options))


def _read_steps(text: str) -> list[int]:
    if text == "all":
        return list(range(1, 7))
    numbers = [part.strip() for part in text.split(",")]
    for number in numbers:
        if number not in tuple("123456"):
            raise InputError(f"--steps: {number!r} is no step, expected numbers from 1 to 6, as 1,2,3, or all")
    return sorted({int(number) for number in numbers})
