"""Evaluates a checkpoint or a run on shards: greedy and sampled, by verifier and by kind of question.

python launch/tpu_eval.py --checkpoint=DIR --data=SHARDS:test [--samples=8] [--json=FILE]
python launch/tpu_eval.py --workdir=runs/... --data=demo:heldout

DIR, the folder of a run and that of SHARDS may be gs://bucket/folder.
"""

import argparse
import json
import pathlib
import sys

from vlaa_jax.errors import InputError, check_output, run_command
from vlaa_jax.storage import cache_folder, require_folder


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line and checks what can be checked at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    policy = parser.add_mutually_exclusive_group(required=True)
    policy.add_argument("--checkpoint", metavar="DIR", help="Hugging Face directory; 'demo' is the shipped policy")
    policy.add_argument("--workdir", metavar="RUN", help="folder of a run")
    parser.add_argument("--step", type=int, help="checkpoint of the run; by default the newest")
    parser.add_argument("--data", metavar="SHARDS", required=True, help="DIRECTORY:SPLIT, or demo:heldout, demo:harder")
    parser.add_argument("--samples", type=int, default=8, help="samples a record beside the greedy one; 0 for none")
    parser.add_argument("--temperature", type=float, help="of the samples; by default that of the training, else 1")
    parser.add_argument("--new-tokens", type=int, default=0, help="bound; by default that of the training, else 1024")
    parser.add_argument("--records", type=int, default=0, help="so many, spread evenly over the set; 0 for all")
    parser.add_argument("--images", choices=("own", "swapped", "blank"), default="own", help="pictures shown")
    parser.add_argument("--scorer", metavar="MODULE:CLASS", help="judge of open-ended answers; by default the run's")
    parser.add_argument("--system", metavar="FILE", default="", help="another system message than in training")
    parser.add_argument("--skip-bad", action="store_true", help="go on without records that cannot be used")
    parser.add_argument("--batch", type=int, default=64, help="prompts at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where the figures are written")
    parser.add_argument("--out", metavar="FILE.jsonl", type=pathlib.Path, help="where the answers are written")
    options = parser.parse_args(arguments)
    for name, least in (("samples", 0), ("new_tokens", 0), ("records", 0), ("batch", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}: expected {least} or more")
    if options.temperature is not None and options.temperature <= 0:
        raise InputError(f"--temperature is {options.temperature}: expected a number above 0; greedy runs anyhow")
    for name in ("json", "out"):
        check_output(f"--{name}", getattr(options, name))
    if options.workdir is not None:
        require_folder(options.workdir, "the folder of a run")
    if options.system and not pathlib.Path(options.system).is_file():
        raise InputError(f"--system: {options.system} does not exist")
    return options


def main() -> None:
    options = parse()

    from ml_collections import ConfigDict

    from data_prep.digit_scenes import demo
    from vlaa_jax.evaluation.compare import compare, tables, to_json
    from vlaa_jax.evaluation.evaluate import Evaluator
    from vlaa_jax.evaluation.tables import text_table
    from vlaa_jax.processing.buckets import choose_buckets
    from vlaa_jax.processing.index import build_index, count_by_verifier
    from vlaa_jax.processing.shards import RecordSource
    from vlaa_jax.rewards import check_gold, load_scorer
    from vlaa_jax.training import saved_policy, settings
    from vlaa_jax.training.held_out import result_row
    from vlaa_jax.training.run_folder import open_run, replace_file

    settings.enable_compilation_cache(cache_folder() / "programs")
    # What is cheap to refuse comes before the weights.
    source = RecordSource(demo.data(options.data))
    scorer_name = options.scorer or (demo.SCORER if options.data.startswith("demo:") else "")
    scorer = load_scorer(scorer_name) if scorer_name else None
    if options.workdir:
        folder = open_run(options.workdir)
        config = ConfigDict(folder.header()["config"])
        config.model.checkpoint = demo.checkpoint(config.model.checkpoint)
        policy = saved_policy.from_run(folder, config, step=options.step, system=options.system)
        if scorer is None and policy.scorer:
            scorer = load_scorer(policy.scorer)
    else:
        policy = saved_policy.from_checkpoint(demo.checkpoint(options.checkpoint), system=options.system)
    if policy.warning():
        print(f"warning: {policy.warning()}", file=sys.stderr)

    index = build_index(source, policy.encoder, check_gold)
    if index.report() and not (options.skip_bad and len(index.good)):
        raise InputError(f"{options.data}: {index.report()}; --skip-bad goes on without them")
    if index.report():
        print(f"skipped: {index.report()}")
    if scorer is None and "open_ended" in count_by_verifier(index):
        raise InputError(f"{options.data} has open-ended records: name their judge, --scorer=package.module:Class")
    evaluator = Evaluator(
        source,
        index,
        policy.encoder,
        batch=min(options.batch, len(index.good), options.records or options.batch),
        records=options.records,
        images=options.images,
        scorer=scorer,
    )
    print(f"{policy.name} on {len(evaluator)} records of {options.data}, {options.images} pictures", flush=True)

    weights, figures, lines = policy.weights(), {}, []
    for mode, samples in (("greedy", 1), ("sampled", options.samples)):
        if not samples:
            continue
        generator = policy.generator(
            group=samples,
            temperature=0 if mode == "greedy" else options.temperature,
            new_tokens=options.new_tokens,
            # Records are sorted by size, so few buckets mean few programs and little padding.
            prompt_buckets=choose_buckets(index.prompt[index.good], 3, drawn=1, multiple=32),
            window_buckets=choose_buckets(index.windows[index.good], 3, drawn=1, multiple=4),
            seed=options.seed,
        )
        results = evaluator(weights, generator, mode)
        compared = compare(results)
        how = "greedy" if mode == "greedy" else f"{samples} samples at temperature {generator.sampling.temperature:g}"
        for table in tables(f"Answers, {how}", compared, samples):
            print(f"\n{text_table(table)}", flush=True)
        figures[mode] = to_json(compared)
        lines += [{"mode": mode} | result_row(policy.step, result) for result in results]
    if options.out:
        replace_file(options.out, "".join(json.dumps(line) + "\n" for line in lines).encode())
    if options.json:
        described = {
            "policy": policy.name,
            "prompt_sha256": policy.encoder.prompt.sha256(policy.encoder.tokenizer.chat_template),
            "trained_prompt_sha256": policy.prompt_sha256,
        }
        given = {name: value for name, value in vars(options).items() if name not in ("json", "out")}
        given["temperature"], given["new_tokens"] = generator.sampling.temperature, generator.new_tokens
        text = json.dumps({**described, "options": given, **figures}, indent=1, default=str)
        replace_file(options.json, f"{text}\n".encode())


if __name__ == "__main__":
    run_command(main)
