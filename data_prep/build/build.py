"""The build: which steps there are to do, from what, in which order."""

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from ml_collections import ConfigDict

from data_prep.answers.ledger import create_ledger, open_ledger
from data_prep.answers.open import Answerer, open_answerer
from data_prep.build import assemble, collect, engine, report
from data_prep.build.curation import DisjointBy, Searched, Split, candidate, choose
from data_prep.build.destination import destination
from data_prep.build.folder import FORMER, StepFolder, check_place, exists, fingerprint, join, write_file
from data_prep.build.steps import ASKING, Step, read_prompt
from vlaa_jax.errors import InputError
from vlaa_jax.storage import is_remote

STEPS = tuple(range(1, 7))
SHARDS = "shards"
# Of a model's section: what its answers depend on. The others may change on the way.
_DECISIVE = ("model", "max_tokens", "temperature")


def build(config: ConfigDict, out: str, *, steps: Sequence[int] = STEPS, options: Sequence[str] = ()) -> str:
    """Runs the steps that are not whole yet, and writes `report.json`.

    Args:
      config: see configs/vlaa_thinking.py.
      out: folder of the build; one that was begun goes on.
      steps: numbers of those to run.
      options: Beam's.

    Returns:
      What became of the questions, what it cost, and where everything is.

    Raises:
      InputError: the folder holds a build from another config, a step before is missing, a source, prompt or model is
        not what was expected, or the budget is used up. What is whole stays, and so do all answers.
    """
    plan = _Plan(config, out)
    whole = plan.whole()
    todo = [number for number in sorted(set(steps)) if number not in whole]
    for number in todo:
        if number > 1 and number - 1 not in {*whole, *todo}:
            raise InputError(f"--steps: step {number} needs step {number - 1}, which is not done in {out}")
    plan.prepare(todo)
    try:
        for number in todo:
            plan.run(number, options)
    finally:
        text = plan.summary()
    return text if todo else f"{text}\n\nThese steps were done already; nothing was asked."


class _Plan:
    """A build's steps with their folders and what they are made from."""

    def __init__(self, config: ConfigDict, out: str):
        self._config, self._out = config, out
        _check(config)
        check_place(out)
        self._shards = join(out, SHARDS)
        self._ledger = join(out, "ledger.json" if is_remote(out) else "ledger.sqlite")
        self._cache = config.cache or join(out, "cache")
        self._sources = collect.sources(config)
        self._prompts = {step.number: read_prompt(step, config[step.name].prompt) for step in ASKING}
        self._answerers: dict[int, Answerer] = {}
        names = {1: collect.NAME, **{step.number: step.name for step in ASKING}, 6: assemble.NAME}
        self._folders = {number: StepFolder(out, number, name) for number, name in names.items()}
        self._inputs: dict[int, dict[str, Any]] = {}
        for number in STEPS:
            before = {FORMER: fingerprint(self._inputs[number - 1])} if number > 1 else {}
            self._inputs[number] = _fields(self._decisive(number)) | before

    def _decisive(self, number: int) -> dict[str, Any]:
        """What the outcome of a step depends on, as the config nests it."""
        config = self._config
        if number == 1:
            chosen = {source.name: {"folder": source.folder, "limit": source.limit} for source in self._sources}
            return {"seed": config.seed, "sources": chosen}
        if number == 6:
            curation = config.curation.to_dict()
            curation["quotas"] = {source.name: curation["quotas"][source.name] for source in self._sources}
            return {"curation": curation, "shards": config.shards.to_dict()}
        step = self._step(number)
        section = {name: config[step.name][name] for name in (*_DECISIVE, *step.rules)}
        section["prompt"] = f"sha256 {hashlib.sha256(self._prompts[number].encode()).hexdigest()}"
        return {step.name: section}

    def _step(self, number: int) -> Step:
        return next(step for step in ASKING if step.number == number)

    def whole(self) -> set[int]:
        """Numbers of the steps that are done; raises InputError for one that was made from something else."""
        return {number for number in STEPS if self._folders[number].check(self._inputs[number])}

    def prepare(self, todo: Sequence[int]) -> None:
        """Finds what is wrong with the models before anything is asked."""
        asking = [step for step in ASKING if step.number in todo]
        if not asking:
            return
        create_ledger(self._ledger, self._config.budget)
        for step in asking:
            section = self._config[step.name].to_dict()
            model = {name: value for name, value in section.items() if name not in ("prompt", *step.rules)}
            self._answerers[step.number] = open_answerer(model, cache=self._cache, ledger=self._ledger, stage=step.name)

    def run(self, number: int, options: Sequence[str]) -> None:
        """Runs a step whose step before is whole."""
        folder = self._folders[number]
        _say(f"step {number} {folder.name}")
        if number == 6:
            destination(self._shards).forget(begun=folder.begun())
        folder.clear()
        if number == 1:
            collect.collect(self._sources, folder, self._config.files, options)
        elif number == 6:
            self._curate(options)
        else:
            self._ask(self._step(number), options)
        counts = engine.read_counts(folder)
        self._check_answered(number, counts)
        folder.finish(self._inputs[number], counts)
        _say(f"step {number} {folder.name}: {report.sentence(counts)}")

    def summary(self) -> str:
        """Writes `report.json`; the same for people, with where everything is."""
        states = {f"{folder.number} {folder.name}": folder.state() for folder in self._folders.values()}
        steps = {name: state["counts"] for name, state in states.items() if state is not None}
        stages = open_ledger(self._ledger).summary() if exists(self._ledger) else []
        path = join(self._out, "report.json")
        write_file(path, report.as_json(steps, stages).encode())
        places = {"report": path, "set aside": join(self._out, "steps", "*", "aside-*.jsonl"), "answers": self._cache}
        if self._folders[6].state():
            places = {"shards": self._shards} | places
        listed = "\n".join(f"{name + ':':<10} {place}" for name, place in places.items())
        return "\n\n".join(part for part in (report.tables(steps, stages), listed) if part)

    def _ask(self, step: Step, options: Sequence[str]) -> None:
        before = self._folders[step.number - 1]
        asking = engine.Asking(
            step=step,
            prompt=self._prompts[step.number],
            section=self._config[step.name].to_dict(),
            answerer=self._answerers[step.number],
            folders=self._pictures(),
            drafts=report.total(engine.read_counts(before)["passed"]),
        )
        engine.ask(asking, before.files(), self._folders[step.number], self._config.files, options)

    def _curate(self, options: Sequence[str]) -> None:
        config, before, folder = self._config, self._folders[5], self._folders[6]
        chosen, left = choose(
            (candidate(draft, config.curation.aha) for draft in before.drafts()),
            config.curation.quotas,
            seed=config.seed,
            disjoint_by=config.curation.disjoint_by,
        )
        if not chosen:
            raise InputError(
                f"no question is left for the shards: {join(self._out, 'steps')} holds what became of each"
            )
        assemble.assemble(
            assemble.order(chosen, left, seed=config.seed, records_per_shard=config.shards.records_per_shard),
            before.files(),
            folder,
            destination(self._shards),
            folders=self._pictures(),
            section=config.shards.to_dict(),
            spread=config.files,
            options=options,
        )

    def _check_answered(self, number: int, counts: report.Counts) -> None:
        """Raises `InputError` for a step in which so many questions have no answer that their model was not there."""
        lost = {reason: sum(own.values()) for reason, own in counts["set_aside"].items()}
        unanswered = {
            reason.removeprefix(f"{engine.UNANSWERED}, "): count
            for reason, count in lost.items()
            if reason.startswith(engine.UNANSWERED)
        }
        come = sum(lost.values()) + report.total(counts["passed"])
        if sum(unanswered.values()) > self._config.most_unanswered * come:
            raise InputError(
                f"step {number}: {sum(unanswered.values()):,} of {come:,} questions got no answer "
                f"({', '.join(unanswered)}), more than config.most_unanswered={self._config.most_unanswered:g} allows; "
                "the same command asks them again, and no others"
            )

    def _pictures(self) -> dict[str, str]:
        return {source.name: source.folder for source in self._sources}


def _check(config: ConfigDict) -> None:
    """Raises `InputError` for a value that a late step would stumble over, before the early ones are paid for."""
    for field, allowed in {"aha": get_args(Searched), "disjoint_by": get_args(DisjointBy)}.items():
        if config.curation[field] not in allowed:
            raise InputError(f"config.curation.{field} is {config.curation[field]!r}: expected {' or '.join(allowed)}")
    least = {"budget": 0, "most_unanswered": 0, "files": 1, "rewrite.drift": 0}
    least |= {"shards.records_per_shard": 1, "shards.max_image_bytes": 0}
    least |= {f"sources.{name}.limit": 0 for name in config.sources}
    least |= {f"curation.quotas.{name}.{split}": 0 for name in config.sources for split in get_args(Split)}
    values = _fields(config.to_dict())
    for field, bound in least.items():
        if values[field] < bound:
            raise InputError(f"config.{field} is {values[field]}: expected {bound} or more")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", config.shards.name):
        raise InputError(f"config.shards.name is {config.shards.name!r}: expected lower-case letters, digits and _")
    if not re.fullmatch(r"\d+\.\d+\.\d+", config.shards.version):
        raise InputError(f"config.shards.version is {config.shards.version!r}: expected three numbers, as 1.0.0")


def _fields(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted names."""
    out: dict[str, Any] = {}
    for name, value in section.items():
        out |= _fields(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
