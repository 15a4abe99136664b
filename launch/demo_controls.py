"""What a sceptic asks of a finished demo run: does it look, does it memorise, would anything else have done the same?

python launch/demo_controls.py --workdir=runs/grpo_mixed-demo-...

Trains the policy once with shuffled rewards and once by more SFT, then answers the held-out scenes with other pictures,
blank ones and other options, scenes of the training, and harder ones. The tables go to the terminal, to
`evaluation/controls.json` of the run and into its report.html. Takes about half an hour on two cores; what is done is
kept, so it can be stopped and started again.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from vlaa_jax.errors import InputError, run_command

_LAUNCH = pathlib.Path(__file__).parent
_CONFIGS = _LAUNCH.parent / "configs"
_NEW_TOKENS = 256  # harder scenes hold more digits than those of the training: traces are longer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", metavar="RUN", type=pathlib.Path, required=True, help="a finished GRPO demo run")
    parser.add_argument("--steps", type=int, default=0, help="of the shuffled run; by default those of RUN")
    parser.add_argument("--sft-updates", type=int, default=1000, help="of SFT instead of GRPO (default: %(default)s)")
    parser.add_argument("--records", type=int, default=0, help="of each set, spread evenly; 0 for all")
    options = parser.parse_args()
    if not (options.workdir / "evaluation" / "after-greedy.jsonl").exists():
        raise InputError(f"{options.workdir} is not a finished run with held-out scenes")

    from data_prep.digit_scenes import controls
    from vlaa_jax.evaluation.tables import markdown_table
    from vlaa_jax.training.run_folder import open_run
    from vlaa_jax.training.run_report import answer_findings, write_run_report

    run = options.workdir
    header = open_run(run).header()["config"]
    folder = run / "controls"
    folder.mkdir(exist_ok=True)
    shards = controls.write_shards(folder / "shards", seen=_seen(run), seed=header["seed"])
    shuffled, more_sft = folder / "shuffled-rewards", folder / "more-sft"
    start = header["model"]["checkpoint"]
    steps = options.steps or header["steps"]
    _train(shuffled, "grpo_mixed.py", start, "rewards.shuffled=True", f"steps={steps}", f"seed={header['seed']}")
    _train(more_sft, "sft.py", start, f"steps={options.sft_updates}", f"seed={header['seed'] + 1}")

    def answers(name: str, policy: pathlib.Path | str, data: str, images: str = "own") -> list[dict]:
        path = folder / f"{name}.jsonl"
        if not path.exists():
            which = f"--checkpoint={policy}" if isinstance(policy, str) else f"--workdir={policy}"
            _call(
                "tpu_eval.py", which, f"--data={data}", f"--images={images}", "--samples=0", f"--out={path}",
                "--batch=65", f"--records={options.records}", f"--scorer={header['rewards']['scorer']}",
                f"--new-tokens={_NEW_TOKENS}",
            )  # fmt: skip
        return [json.loads(line) for line in path.read_text().splitlines()]

    tables = controls.tables(
        held_out={
            "trained": answers("trained", run, "demo:heldout"),
            "start": answers("start", start, "demo:heldout"),
            "rewards shuffled": answers("shuffled", shuffled, "demo:heldout"),
            f"SFT instead, {options.sft_updates} updates": answers("more-sft", more_sft, "demo:heldout"),
            "trained, another scene's picture": answers("swapped", run, "demo:heldout", "swapped"),
            "trained, blank picture": answers("blank", run, "demo:heldout", "blank"),
            "start, blank picture": answers("start-blank", start, "demo:heldout", "blank"),
            "trained, options in another order": answers("permuted", run, f"{shards}:permuted"),
        },
        seen=answers("seen", run, f"{shards}:seen"),
        harder={
            "trained": answers("harder", run, "demo:harder"),
            "start": answers("harder-start", start, "demo:harder"),
            "rewards shuffled": answers("harder-shuffled", shuffled, "demo:harder"),
            f"SFT instead, {options.sft_updates} updates": answers("harder-more-sft", more_sft, "demo:harder"),
        },
        seconds={"GRPO": _seconds(run), "rewards shuffled": _seconds(shuffled), "SFT": _seconds(more_sft)},
    )
    for table in tables:
        print(f"\n{markdown_table(table)}")
    path = run / "evaluation" / "controls.json"
    path.write_text(json.dumps([vars(table) for table in tables], indent=1))
    findings = answer_findings(run, controls.held_out_source())
    print(f"\nreport: {write_run_report(open_run(run), findings)}")


def _seen(run: pathlib.Path) -> set[str]:
    """Ids of the records that the run was trained on."""
    with (run / "samples.jsonl").open() as lines:
        return {json.loads(line)["id"] for line in lines}


def _train(workdir: pathlib.Path, config: str, checkpoint: str, *fields: str) -> None:
    """Trains unless it is done; goes on where it stopped."""
    if not (workdir / "report.html").exists():
        fields = ("data.evaluation=", f"model.checkpoint={checkpoint}", *fields)
        overrides = [f"--config.{field}" for field in fields]
        _call("tpu_train.py", f"--config={_CONFIGS / config}", *overrides, f"--workdir={workdir}")


def _seconds(run: pathlib.Path) -> float:
    """Of all steps, without compilation before the first and without evaluation."""
    with (run / "metrics.jsonl").open() as lines:
        return sum(json.loads(line).get("seconds/step", 0.0) for line in lines)


def _call(tool: str, *arguments: str) -> None:
    print(f"\n{tool} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, str(_LAUNCH / tool), *arguments], check=True)


if __name__ == "__main__":
    run_command(main)
