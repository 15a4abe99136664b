"""Evaluates a checkpoint or a run on shards: greedy and sampled, by verifier and by kind of question.

python launch/tpu_eval.py --checkpoint=DIR --data=SHARDS:test [--samples=8] [--json=FILE]
python launch/tpu_eval.py --workdir=runs/... --data=demo:heldout

With --best-of judges choose among N responses, sampled or from files; tables, pictures and scores go into a folder:

python launch/tpu_eval.py --checkpoint=DIR --data=SHARDS:test --best-of=2,4,8 --judge=process:PRM --out-folder=best-of-n
python launch/tpu_eval.py --data=SHARDS:test --best-of=2,4,8,16 --responses=FILE.jsonl --judge=... --out-folder=...

A judge is process:DIR or outcome:DIR (a trained reward model), untrained:DIR (a policy with a random head),
likelihood (of the policy itself) or likelihood:DIR, rubric:MODEL (MODEL of --endpoint, or policy:DIR in this process),
class:MODULE:CLASS (your own), or `stored`: those whose scores stand in the response files already.

DIR, the folder of a run and that of SHARDS may be gs://bucket/folder.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from vlaa_jax.errors import InputError, check_output, run_command
from vlaa_jax.storage import cache_folder, require_folder

if TYPE_CHECKING:
    from vlaa_jax.evaluation.best_of_n.answered import Judged
    from vlaa_jax.evaluation.evaluate import Result
    from vlaa_jax.evaluation.judges.judge import Judge
    from vlaa_jax.evaluation.judges.rubric import Ask
    from vlaa_jax.processing.records import Record
    from vlaa_jax.processing.shards import RecordSource
    from vlaa_jax.rewards import BatchScorer, Scorer
    from vlaa_jax.rollout.generate import Generator
    from vlaa_jax.training.saved_policy import SavedPolicy

_STORED = "stored"  # in place of a judge: those whose scores stand in the response files
_BEST_OF = (
    "best_of",
    "judge",
    "out_folder",
    "responses",
    "rows",
    "endpoint",
    "endpoint_key",
    "dominance",
    "own_accuracy",
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line and checks what can be checked at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument("--checkpoint", metavar="DIR", help="Hugging Face directory; 'demo' is the shipped policy")
    policy.add_argument("--workdir", metavar="RUN", help="folder of a run")
    parser.add_argument("--step", type=int, help="checkpoint of the run; by default the newest")
    parser.add_argument("--data", metavar="SHARDS", required=True, help="DIRECTORY:SPLIT, or demo:heldout, demo:harder")
    parser.add_argument("--samples", type=int, default=8, help="samples a record beside the greedy one; 0 for none")
    parser.add_argument("--temperature", type=float, help="of the samples; by default that of the training, else 1")
    parser.add_argument("--new-tokens", type=int, default=0, help="bound; by default that of the training, else 1024")
    parser.add_argument("--records", type=int, default=0, help="so many, spread evenly over the set; 0 for all")
    parser.add_argument("--images", choices=("own", "swapped", "blank"), default="own", help="pictures shown")
    parser.add_argument(
        "--scorer", metavar="NAME", help="MODULE:CLASS or a judge, of open-ended answers; by default the run's"
    )
    parser.add_argument("--system", metavar="FILE", default="", help="another system message than in training")
    parser.add_argument("--skip-bad", action="store_true", help="go on without records that cannot be used")
    parser.add_argument("--batch", type=int, default=64, help="prompts at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where the figures are written")
    parser.add_argument("--out", metavar="FILE.jsonl", type=pathlib.Path, help="where the answers are written")
    best = parser.add_argument_group("best of N")
    best.add_argument("--best-of", metavar="N,N,...", default="", help="choose among so many responses")
    best.add_argument("--judge", metavar="SPEC", action="append", default=[], help="see below; may be repeated")
    best.add_argument(
        "--out-folder", metavar="DIR", type=pathlib.Path, help="tables, page, pictures, responses, scores"
    )
    best.add_argument("--responses", metavar="FILE.jsonl", type=pathlib.Path, action="append", default=[])
    best.add_argument("--rows", type=int, default=8, help="questions that a judge reads at a time")
    best.add_argument("--endpoint", metavar="URL", default="", help="that answers a rubric judge")
    best.add_argument("--endpoint-key", metavar="VARIABLE", default="", help="of the environment, holds its key")
    best.add_argument("--dominance", metavar="FIELD", default="dominance", help="of metadata: text or vision")
    best.add_argument("--own-accuracy", metavar="FILE", type=pathlib.Path, help="JSON: judge -> its model's accuracy")
    options = parser.parse_args(arguments)
    for name, least in (("samples", 0), ("new_tokens", 0), ("records", 0), ("batch", 1), ("seed", 0), ("rows", 1)):
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
    _check_best_of(options)
    return options


def _check_best_of(options: argparse.Namespace) -> None:
    given = options.responses or options.judge or options.out_folder or options.own_accuracy
    if not options.best_of:
        if given:
            raise InputError("--judge, --responses, --out-folder and --own-accuracy belong to --best-of=N,N,...")
        if not (options.checkpoint or options.workdir):
            raise InputError("one of --checkpoint and --workdir is needed: the policy")
        return

    from vlaa_jax.evaluation.best_of_n.folder import check_folder
    from vlaa_jax.evaluation.judges.spec import RUBRIC, SPECS, read_spec

    sizes = options.best_of.split(",")
    if not all(size.strip().isdecimal() and int(size) > 1 for size in sizes):
        raise InputError(f"--best-of is {options.best_of!r}: expected numbers of responses above 1, as --best-of=2,4,8")
    options.best_of = tuple(sorted({int(size) for size in sizes}))
    if options.out_folder is None:
        raise InputError("--best-of needs --out-folder=DIR, where tables, pictures and responses go")
    check_folder(options.out_folder)
    if options.images != "own" or options.json or options.out:
        raise InputError("--images, --json and --out do not go with --best-of, which writes --out-folder")
    if options.responses and options.records:
        raise InputError("--records chooses what is sampled: it does not go with --responses")
    if not (options.responses or options.checkpoint or options.workdir):
        raise InputError("--best-of needs responses: a policy (--checkpoint or --workdir) or files (--responses)")
    for name in options.judge:
        if name == _STORED and not options.responses:
            raise InputError(f"--judge={_STORED} needs --responses=FILE.jsonl with scores")
        if name != _STORED:
            try:
                spec = read_spec(name)
            except InputError:
                raise InputError(f"--judge is {name!r}: expected {SPECS}, or {_STORED}") from None
            if spec.kind == RUBRIC and not (spec.place.startswith("policy:") or options.endpoint):
                raise InputError(f"--judge={name}: name its endpoint, --endpoint=URL, or a policy, rubric:policy:DIR")


def main() -> None:
    options = parse()

    from data_prep.digit_scenes import demo
    from vlaa_jax.evaluation.judges.open_scorer import open_scorer
    from vlaa_jax.processing.shards import RecordSource
    from vlaa_jax.training import settings

    settings.enable_compilation_cache(cache_folder() / "programs")
    # What is cheap to refuse comes before the weights.
    source = RecordSource(demo.data(options.data))
    scorer_name = options.scorer or (demo.SCORER if options.data.startswith("demo:") else "")
    scorer = open_scorer(scorer_name, answering=_answering(options)) if scorer_name else None
    if options.best_of:
        _best_of(options, source, scorer)
    else:
        _evaluate(options, source, scorer)


def _open_policy(options: argparse.Namespace) -> "SavedPolicy":
    from ml_collections import ConfigDict

    from data_prep.digit_scenes import demo
    from vlaa_jax.training import saved_policy
    from vlaa_jax.training.run_folder import open_run

    if options.workdir:
        folder = open_run(options.workdir)
        config = ConfigDict(folder.header()["config"])
        config.model.checkpoint = demo.checkpoint(config.model.checkpoint)
        policy = saved_policy.from_run(folder, config, step=options.step, system=options.system)
    else:
        policy = saved_policy.from_checkpoint(demo.checkpoint(options.checkpoint), system=options.system)
    if policy.warning():
        print(f"warning: {policy.warning()}", file=sys.stderr)
    return policy


class _Asking:
    """A policy on the usable records of a shard set."""

    def __init__(
        self,
        options: argparse.Namespace,
        source: "RecordSource",
        policy: "SavedPolicy",
        scorer: "Scorer | BatchScorer | None",
    ):
        from vlaa_jax.evaluation.evaluate import Evaluator
        from vlaa_jax.processing.index import build_index, places_of
        from vlaa_jax.rewards import check_gold

        self._options, self._policy = options, policy
        index = self.index = build_index(source, policy.encoder, check_gold)
        if index.report() and not (options.skip_bad and len(index.good)):
            raise InputError(f"{options.data}: {index.report()}; --skip-bad goes on without them")
        if index.report():
            print(f"skipped: {index.report()}")
        open_ended = places_of(index, "open_ended")
        if scorer is None and len(open_ended):
            raise InputError(f"{options.data} has open-ended records: name their judge, --scorer=package.module:Class")
        _settle(scorer, source, open_ended, options)
        self._evaluator = Evaluator(
            source,
            index,
            policy.encoder,
            batch=min(options.batch, len(index.good), options.records or options.batch),
            records=options.records,
            images=options.images,
            scorer=scorer,
        )
        self._weights = policy.weights()

    def __len__(self) -> int:
        return len(self._evaluator)

    def __call__(self, mode: str, samples: int) -> "tuple[list[Result], Generator]":
        """Results of every record, `greedy` or `sampled`, and what sampled them."""
        from vlaa_jax.processing.buckets import choose_buckets

        good = self.index.good
        generator = self._policy.generator(
            group=samples,
            temperature=0 if mode == "greedy" else self._options.temperature,
            new_tokens=self._options.new_tokens,
            # Records are sorted by size, so few buckets mean few programs and little padding.
            prompt_buckets=choose_buckets(self.index.prompt[good], 3, drawn=1, multiple=32),
            window_buckets=choose_buckets(self.index.windows[good], 3, drawn=1, multiple=4),
            seed=self._options.seed,
        )
        return self._evaluator(self._weights, generator, mode), generator


def _evaluate(options: argparse.Namespace, source: "RecordSource", scorer: "Scorer | BatchScorer | None") -> None:
    from vlaa_jax.evaluation.compare import compare, tables, to_json
    from vlaa_jax.evaluation.tables import text_table
    from vlaa_jax.storage import replace_file
    from vlaa_jax.training.held_out import result_row

    policy = _open_policy(options)
    asking = _Asking(options, source, policy, scorer or _own_scorer(options, policy))
    print(f"{policy.name} on {len(asking)} records of {options.data}, {options.images} pictures", flush=True)
    figures, lines = {}, []
    for mode, samples in (("greedy", 1), ("sampled", options.samples)):
        if not samples:
            continue
        results, generator = asking(mode, samples)
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
        given = {name: value for name, value in vars(options).items() if name not in ("json", "out", *_BEST_OF)}
        given["temperature"], given["new_tokens"] = generator.sampling.temperature, generator.new_tokens
        text = json.dumps({**described, "options": given, **figures}, indent=1, default=str)
        replace_file(options.json, f"{text}\n".encode())


def _best_of(options: argparse.Namespace, source: "RecordSource", scorer: "Scorer | BatchScorer | None") -> None:
    from data_prep.digit_scenes import demo
    from data_prep.digit_scenes.step_truth import step_table
    from vlaa_jax.evaluation.best_of_n import run
    from vlaa_jax.evaluation.judges.open import Policy, check_judge, open_judge
    from vlaa_jax.evaluation.tables import text_table

    own_accuracy = run.read_own_accuracy(options.own_accuracy) if options.own_accuracy else {}
    has_policy = bool(options.checkpoint or options.workdir)
    names = [name for name in dict.fromkeys(options.judge) if name != _STORED]
    for name in names:
        check_judge(name, policy=has_policy, folder=demo.checkpoint)
    policy = _open_policy(options) if has_policy else None
    scorer = scorer or (policy and _own_scorer(options, policy))
    places = {source[place].id: place for place in range(len(source))}
    read = lambda name: source[places[name]]  # noqa: E731
    if options.responses:
        answers, how = _from_files(options, source, places, read, policy, scorer)
    else:
        answers, how = _sampled(options, source, policy, scorer)
    own = policy and Policy(policy.model, policy.encoder, policy.dtype)

    def opening(name: str) -> "Callable[[], Judge]":
        return lambda: open_judge(
            name,
            policy=own,
            answering=_answering(options),
            folder=demo.checkpoint,
            rows=options.rows,
            seed=options.seed,
        )

    settings = run.Settings(
        sizes=options.best_of,
        folder=options.out_folder,
        title=f"Best of N on {options.data}",
        summary=(how,),
        dominance=options.dominance,
        own_accuracy=own_accuracy,
    )
    tables = run.evaluate(answers, [opening(name) for name in names], read, settings, more=step_table)
    for table in tables:
        print(f"\n{text_table(table)}", flush=True)
    print(f"\nwritten to {options.out_folder}")


def _sampled(
    options: argparse.Namespace, source: "RecordSource", policy: "SavedPolicy", scorer: "Scorer | BatchScorer | None"
) -> "tuple[list[Judged], str]":
    from vlaa_jax.evaluation.best_of_n.answered import Judged, from_results

    asking = _Asking(options, source, policy, scorer)
    samples = max(options.best_of)
    print(f"{policy.name} on {len(asking)} records of {options.data}, {samples} samples", flush=True)
    greedy, _ = asking("greedy", 1)
    sampled, generator = asking("sampled", samples)
    name = options.checkpoint or policy.name
    how = f"{samples} samples of {name} at temperature {generator.sampling.temperature:g}, seed {options.seed}."
    return [Judged(name, tuple(from_results(sampled, greedy)), {})], how


def _from_files(
    options: argparse.Namespace,
    source: "RecordSource",
    places: Mapping[str, int],
    read: "Callable[[str], Record]",
    policy: "SavedPolicy | None",
    scorer: "Scorer | BatchScorer | None",
) -> "tuple[list[Judged], str]":
    from vlaa_jax.evaluation.best_of_n.answered import read_responses, stored_scores, verify

    more = {"resize": policy.encoder.images.resize} if policy else {}
    answers = []
    for path in options.responses:
        for model, responses in read_responses(path, places).items():
            if any(model == other.model for other in answers):
                raise InputError(f"--responses: {path} has responses of {model}, as another file has")
            open_ended = [places[own.id] for own in responses if read(own.id).verifier == "open_ended"]
            _settle(scorer, source, open_ended, options)
            judged = stored_scores(model, verify(responses, read, scorer=scorer, **more), responses)
            answers.append(judged if _STORED in options.judge else dataclasses.replace(judged, scores={}))
    counts = ", ".join(f"{len(own.questions)} of {own.model}" for own in answers)
    return answers, f"Answered questions: {counts}; from {', '.join(map(str, options.responses))}."


def _own_scorer(options: argparse.Namespace, policy: "SavedPolicy") -> "Scorer | BatchScorer | None":
    from vlaa_jax.evaluation.judges.open_scorer import open_scorer

    if not policy.scorer:
        return None
    return open_scorer(policy.scorer, beta=policy.scorer_beta, answering=_answering(options))


def _settle(
    scorer: "Scorer | BatchScorer | None", source: "RecordSource", places: Sequence[int], options: argparse.Namespace
) -> None:
    """A judge that no run has used as scorer gets its beta from the open-ended records that are evaluated."""
    from vlaa_jax.evaluation.judges.open_scorer import settle_beta
    from vlaa_jax.evaluation.judges.scorer import JudgeScorer

    if isinstance(scorer, JudgeScorer) and len(places):
        settle_beta(scorer, source, places, seed=options.seed)


def _answering(options: argparse.Namespace) -> "Callable[[str], Ask]":
    from data_prep.answers.rubric import kept_answering

    return kept_answering(options.endpoint, options.endpoint_key)


if __name__ == "__main__":
    run_command(main)
