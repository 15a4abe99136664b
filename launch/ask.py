"""Asks a policy about pictures.

python launch/ask.py --checkpoint=DIR --image=FILE --question=TEXT    any checkpoint; several --image flags are allowed
python launch/ask.py                                                 the last run here, or the demo policy, on a scene

DIR and the folder of a run may be gs://bucket/folder.
"""

import argparse
import pathlib
import secrets
import sys
import tempfile

from vlaa_jax.errors import InputError, run_command
from vlaa_jax.storage import cache_folder, require_folder


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line and checks what can be checked at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument("--checkpoint", metavar="DIR", help="Hugging Face directory; 'demo' is the shipped policy")
    policy.add_argument("--workdir", metavar="RUN", help="folder of a run")
    parser.add_argument("--image", metavar="FILE", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--question", metavar="TEXT", help="<image> marks where each picture stands; none: before it")
    parser.add_argument(
        "--verifier",
        choices=("digit", "mcq", "math", "iou", "open_ended"),
        default="open_ended",
        help="adds the instruction for this kind of answer (default: none)",
    )
    parser.add_argument("--samples", type=int, default=1, help="answers")
    parser.add_argument(
        "--temperature", type=float, help="0 is greedy; by default 0 for one answer, as trained for more"
    )
    parser.add_argument("--new-tokens", type=int, default=0, help="bound; by default that of the training, else 1024")
    parser.add_argument("--seed", type=int, help="of samples and scene; by default drawn")
    options = parser.parse_args(arguments)
    if bool(options.image) != bool(options.question):
        raise InputError("--image and --question belong together; without both, a held-out digit scene is asked about")
    for path in options.image:
        if not path.is_file():
            raise InputError(f"--image: {path} does not exist")
    if options.workdir is not None:
        require_folder(options.workdir, "the folder of a run")
    if options.checkpoint and options.checkpoint != "demo":
        require_folder(options.checkpoint, "a Hugging Face directory")
    if options.samples < 1 or options.new_tokens < 0 or (options.seed or 0) < 0:
        raise InputError("--samples must be 1 or more, --new-tokens and --seed 0 or more")
    return options


def main() -> None:
    options = parse()
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed

    from ml_collections import ConfigDict

    from data_prep.digit_scenes import demo
    from vlaa_jax.processing.buckets import choose_buckets
    from vlaa_jax.processing.shards import RecordSource
    from vlaa_jax.rewards import load_scorer, trace
    from vlaa_jax.training import saved_policy, settings
    from vlaa_jax.training.run_folder import open_run

    settings.enable_compilation_cache(cache_folder() / "programs")
    if options.question:
        record = _record(options)
    else:
        scenes = RecordSource(demo.data("demo:heldout"))
        record = scenes[seed % len(scenes)]
    workdir = options.workdir or (None if options.checkpoint else _last_run())
    if workdir:
        folder = open_run(workdir)
        config = ConfigDict(folder.header()["config"])
        config.model.checkpoint = demo.checkpoint(config.model.checkpoint)
        policy = saved_policy.from_run(folder, config)
    else:
        policy = saved_policy.from_checkpoint(demo.checkpoint(options.checkpoint or "demo"))
    if policy.warning():
        print(f"warning: {policy.warning()}", file=sys.stderr)

    prompt = policy.encoder.encode(record)
    temperature = options.temperature
    if temperature is None and options.samples == 1:
        temperature = 0.0
    generator = policy.generator(
        group=options.samples,
        temperature=temperature,
        new_tokens=options.new_tokens,
        prompt_buckets=choose_buckets([len(prompt.tokens)], 1, drawn=1, multiple=32),
        window_buckets=choose_buckets([len(prompt.vision.frames)], 1, drawn=1, multiple=4),
        seed=seed,
    )
    print(f"policy:   {policy.name}")
    if not options.question:
        print(f"scene:    {record.id} (--seed={seed})")
        for number, image in enumerate(record.images):
            path = pathlib.Path(tempfile.gettempdir()) / f"{record.id}-{number}.png"
            path.write_bytes(image)
            print(f"picture:  {path}")
    print(f"question: {record.question}", flush=True)
    if record.answer:
        print(f"gold:     {record.answer}")
    completions = generator(policy.weights(), [prompt], [0]).completions
    for row, length, ended in zip(completions.tokens[0], completions.lengths[0], completions.ended[0], strict=True):
        text = policy.encoder.tokenizer.decode(row[: int(length)].tolist())
        print(f"answer:   {text}{'' if ended else ' [cut at --new-tokens]'}")
        if record.answer:
            scorer = load_scorer(demo.SCORER)
            verdict = trace(record.verifier, text, record.answer, example=record, resizes=prompt.resizes, scorer=scorer)
            print(f"reward:   {verdict.score:.2f} ({record.verifier}: {verdict.rule})")


def _record(options: argparse.Namespace):
    """The question as a record without a gold answer."""
    from vlaa_jax.processing.images import decode
    from vlaa_jax.processing.records import Record

    images = []
    for path in options.image:
        images.append(path.read_bytes())
        try:
            decode(images[-1])
        except InputError as error:
            raise InputError(f"--image: {path}: {error}") from None
    space = "pixels" if options.verifier == "iou" else ""
    return Record("question", tuple(images), options.question, "", options.verifier, box_space=space)


def _last_run() -> pathlib.Path | None:
    """The run under runs/ whose checkpoint is the newest."""
    saved = [path for path in pathlib.Path("runs").glob("*/checkpoints/*") if path.name.isdigit()]
    return max(saved, key=lambda path: path.stat().st_mtime).parents[1] if saved else None


if __name__ == "__main__":
    run_command(main)
