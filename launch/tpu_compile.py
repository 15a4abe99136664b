"""Plans a run on a TPU slice from a laptop: compiles every program of a config for it and says what each needs.

python launch/tpu_compile.py --config=configs/grpo_mixed.py:3b --topology=v5e:4x4
python launch/tpu_compile.py --config=configs/grpo_mixed.py:7b --topology=v6e-16 --search --json=plan.json
python launch/tpu_compile.py --config=configs/search.py:3b --topology=v5e:4x4
python launch/tpu_compile.py --config=configs/grpo_mixed.py:3b --config.rewards.scorer=process:3b --topology=v5e:4x4

  --config=FILE.py[:PRESET]   as for launch/tpu_train.py; shapes come from the preset, or from a checkpoint that is set
  --config.FIELD=VALUE        sets any field of it; a judge may be a directory or have the size of a preset (process:3b)
  --topology=NAME             v5e:4x4, v6e:2x4, v5p:2x2x1, a cloud name (v5litepod-16, v6e-8, v5p-8), slices (2xv5e:4x4)
  --json=FILE                 the same as JSON
  --search                    the largest config.rollout.batch and config.updates.micro_batch (or rows) that fit

It needs libtpu (pip install -e '.[plan]') and no TPU. Exit code 1: a program does not fit.
"""

import json
import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from vlaa_jax.config_file import config_name, read_config
from vlaa_jax.errors import InputError, check_output, run_command

if TYPE_CHECKING:
    from vlaa_jax.models.qwen2_5_vl import ModelConfig
    from vlaa_jax.rollout.generate import Generator

_TOPOLOGY = flags.DEFINE_string("topology", None, "the slice")
_JSON = flags.DEFINE_string("json", None, "file for the result")
_SEARCH = flags.DEFINE_bool("search", False, "find the largest batches")


def main() -> int:
    """Returns 0 when all programs fit, else 1."""
    if {"-h", "--help", "--helpfull", "--helpshort"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    config = read_config(
        sys.argv,
        accepted="--topology=..., --json=... or --search",
        example="configs/grpo_mixed.py",
        tasks=("grpo", "sft", "prm", "search"),
        needed={},
    )
    if not _TOPOLOGY.value:
        raise InputError("--topology is missing: expected a slice, e.g. --topology=v5e:4x4")

    out = pathlib.Path(_JSON.value) if _JSON.value else None
    check_output("--json", out)

    import jax

    from vlaa_jax.planning.chips import open_topology, read_topology

    jax.config.update("jax_enable_compilation_cache", False)  # programs for chips that are not here cannot be read back
    topology = read_topology(_TOPOLOGY.value)
    devices = list(open_topology(topology).devices)  # before anything else wakes JAX

    from vlaa_jax.evaluation.tables import text_table
    from vlaa_jax.models.qwen2_5_vl.config import preset
    from vlaa_jax.models.qwen2_5_vl.config import read_config as read_sizes
    from vlaa_jax.planning import plan, tables

    name = config_name()[1].split(",")[0]
    checkpoint = config.model.checkpoint
    sizes = read_sizes(checkpoint) if checkpoint not in ("", "demo") else preset(name)
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    print(f"{config.task} {name} on {topology.describe()}", flush=True)
    if _SEARCH.value and config.task == "search":
        raise InputError("--search finds the batches of a training: it does not go with configs/search.py")
    if _SEARCH.value:
        config = plan.search(config, sizes, topology, devices, say=say)
    print(tables.heading(config, sizes), flush=True)
    if config.task == "search":
        rows = list(plan.plan_search(config, _rollouts(config, sizes), sizes, topology, devices, say=say))
    else:
        rows = list(plan.plan(config, sizes, topology, devices, say=say))
    table = tables.table(rows, task=config.task)
    print(f"\n{text_table(table)}\n")
    for row in rows:
        for note in row.notes:
            print(f"note: {row.program}: {note}")
        if not row.fits:
            print(row.advice())
    if out:
        out.write_text(json.dumps([row.json() for row in rows], indent=1) + "\n")
    return 0 if all(row.fits for row in rows) else 1


def _rollouts(config: ConfigDict, sizes: "ModelConfig") -> "Generator":
    """What samples the rollouts of a tree search, at its largest sizes."""
    from data_prep.search import settings
    from vlaa_jax.training.batch_sizes import longest_prompt, most_windows

    settings.check(config)
    buckets = (longest_prompt(config),), (most_windows(config),)
    return settings.generator(config, (sizes.image_token,), sizes, buckets)  # which tokens end changes no program


if __name__ == "__main__":
    run_command(main)
