"""The commands on `gs://` paths: equal to local ones, and one sentence where a path is wrong."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from test_bad_input import SFT, shell
from tiny_runs import demo_config

from vlaa_jax.errors import InputError
from vlaa_jax.training import saved_policy, settings
from vlaa_jax.training.checkpoint import Checkpoints


@pytest.fixture
def remote(tiny, bucket):
    """The tiny run, its start checkpoint and its shards in a bucket."""
    run = bucket.put_folder(tiny.run.folder.directory, "runs/tiny")
    for name in bucket.files("runs/tiny/checkpoints"):
        bucket.remove(f"runs/tiny/checkpoints/{name}")  # Orbax marks a whole checkpoint otherwise in a bucket
    with Checkpoints(epath.Path(run) / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, tiny.run.state, {}, 0.5)
    return {
        "run": run,
        "checkpoint": bucket.put_folder(tiny.checkpoint, "start"),
        "shards": bucket.put_folder(tiny.shards, "shards"),
    }


def test_an_export_of_a_remote_run_equals_that_of_a_local_one(tiny, remote, tmp_path, launch):
    folders = []
    for run, place in ((tiny.run.folder.directory, "local"), (remote["run"], "remote")):
        (tmp_path / place).mkdir()
        folders.append(tmp_path / place / "policy")
        launch("export", f"--workdir={run}", f"--out={folders[-1]}")
    local, far = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders)
    assert local == far and len(local) > 5


def test_an_evaluation_on_remote_paths_equals_a_local_one(tiny, remote, tmp_path, launch):
    figures, out = [], tmp_path / "figures.json"
    for run, shards in ((tiny.run.folder.directory, tiny.shards), (remote["run"], remote["shards"])):
        bounds = ["--samples=0", "--new-tokens=2", "--records=2", "--batch=2"]
        launch("tpu_eval", f"--workdir={run}", f"--data={shards}:test", *bounds, f"--json={out}")
        figures.append(json.loads(out.read_text()))
    assert figures[0]["greedy"] == figures[1]["greedy"]
    assert figures[1]["policy"] == f"{remote['run']}, step 1"


def test_a_remote_checkpoint_has_the_weights_of_the_local_one(tiny, remote, launch):
    local, far = (saved_policy.from_checkpoint(place) for place in (tiny.checkpoint, remote["checkpoint"]))
    assert far.name == remote["checkpoint"]
    for one, other in zip(jax.tree.leaves(local.model), jax.tree.leaves(far.model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_wrong_with_a_remote_path_is_named(tiny, bucket, tmp_path, launch):
    none = bucket.address("none")
    data, checkpoint = f"--data={tiny.shards}:test", f"--checkpoint={tiny.checkpoint}"
    for name, arguments, sentence in [
        ("export", [f"--workdir={none}", f"--out={tmp_path}/x"], f"{none} is not the folder of a run: it has no run."),
        ("export", ["--workdir=gs://no-such/run", f"--out={tmp_path}/x"], "gs://no-such/run: no such bucket or file"),
        ("export", [f"--workdir={tmp_path}", f"--out={none}"], f"--out is {none}: expected a local directory"),
        ("tpu_eval", [f"--workdir={none}", data], f"{none} is not the folder of a run: it has no run.json"),
        ("tpu_eval", [f"--checkpoint={none}", data], f"{none}: no such folder, or nothing in it; expected a Hugging"),
        ("tpu_eval", [checkpoint, f"--data={none}:test"], f"{none}: no such folder, or nothing in it; expected shards"),
        ("ask", [f"--checkpoint={none}"], f"{none}: no such folder, or nothing in it; expected a Hugging Face directo"),
    ]:
        with pytest.raises(InputError) as caught:
            launch(name, *arguments)
        assert sentence in str(caught.value)


def test_a_remote_split_that_does_not_exist_and_a_shard_that_is_missing(remote, bucket):
    config = demo_config("sft")
    with config.unlocked():
        config.model.checkpoint = remote["checkpoint"]
        config.data.train = f"{remote['shards']}:dev"
    encoder = settings.load_encoder(config)
    with pytest.raises(InputError, match=rf"{remote['shards']} has no split 'dev'; it has test"):
        settings.open_records(config, "train", encoder)
    (shard,) = (name for name in bucket.files("shards") if "array_record" in name)
    with config.unlocked():
        config.data.train = f"{remote['shards']}:test"
        config.rollout.prompt_buckets = (4096,)
    assert len(settings.open_records(config, "train", encoder)[0]) == 5
    bucket.write(f"shards/{shard}", bucket.files("shards")[shard][:-100])
    with pytest.raises(InputError, match=rf"{remote['shards']}/{shard}: \d+ bytes where manifest.json says"):
        settings.open_records(config, "train", encoder)
    bucket.remove(f"shards/{shard}")
    with pytest.raises(InputError, match=rf"{remote['shards']}: no such folder, or nothing in it; expected shards"):
        settings.open_records(config, "train", encoder)


def test_training_in_a_bucket_that_does_not_exist(tiny, emulator, tmp_path):
    fields = {"model.checkpoint": tiny.checkpoint, "data.train": f"{tiny.shards}:test", "data.evaluation": ""}
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    sentence = shell("launch/tpu_train.py", SFT, *given, "--workdir=gs://no-such-bucket/run", cache=tmp_path / "cache")
    assert sentence == "gs://no-such-bucket/run: no such bucket or file (404)"
