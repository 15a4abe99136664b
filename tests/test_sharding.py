"""The rules against the published sizes, and programs on four virtual devices against one."""

import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import sharded
import tiny
from xla_flags import of_devices

from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.models.qwen2_5_vl.config import preset
from vlaa_jax.sharding import ROLLOUT, TRAINING, make_mesh, parameter_shardings
from vlaa_jax.training.state import create_state


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """Loss and gradients of each mesh, and of one device."""
    file = tmp_path_factory.mktemp("sharded") / "gradients.npz"
    paths = os.pathsep.join(filter(None, (str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "XLA_FLAGS": of_devices(4), "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    subprocess.run([sys.executable, sharded.__file__, str(file)], env=environment, check=True, timeout=300)
    out: dict[str, dict[str, np.ndarray]] = {}
    for key, array in np.load(file).items():
        run, name = key.split("|")
        out.setdefault(run, {})[name] = array
    return out


@pytest.mark.parametrize("mesh", sharded.MESHES)
def test_loss_and_gradients_do_not_depend_on_the_mesh(found, mesh):
    assert found[mesh].keys() | {"q", "k", "v"} == found["one"].keys()
    for name, ours in found[mesh].items():
        theirs = found["one"][name]
        assert np.abs(theirs).max() > 0, name
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max(), err_msg=name)


def leaves(tree, rules) -> list[tuple[str, tuple[int, ...], tuple]]:
    """(path, shape, spec padded to the shape's length) of every array."""
    mesh = make_mesh(jax.devices()[:1], key_value_heads=1)
    where = jax.tree.leaves(parameter_shardings(tree, mesh, rules))
    arrays = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")  # noqa: E731
    return [
        (name(path), leaf.shape, (*place.spec, *(None,) * (leaf.ndim - len(place.spec))))
        for (path, leaf), place in zip(arrays, where, strict=True)
    ]


@pytest.mark.quick
@pytest.mark.parametrize("size", ["3b", "7b", "qwen2-2b", "qwen2-7b"])
def test_every_matrix_is_split_on_an_axis_that_256_divides(size):
    model, heads = hf.abstract_model(preset(size)), preset(size).text.key_value_heads
    whole = 0
    for path, shape, spec in leaves(model, TRAINING):
        if "fsdp" not in spec:
            # Vectors, some of them stacked to more than 100,000 numbers; no matrix.
            assert path.removesuffix(".value").endswith(("bias", "norm", "norm1", "norm2")), path
            whole += math.prod(shape)
        else:
            assert shape[spec.index("fsdp")] % 256 == 0, (path, shape)
        if "tensor" in spec:
            assert shape[spec.index("tensor")] % heads == 0, (path, shape)
    assert whole < sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model)) / 1_000
    # For the rollout nothing but `tensor` splits.
    assert {axis for _, _, spec in leaves(model, ROLLOUT) for axis in spec} == {None, "tensor"}


@pytest.mark.quick
def test_every_rule_is_needed():
    model = hf.abstract_model(preset("7b"))
    full = leaves(model, TRAINING)
    for rule in TRAINING:
        try:
            assert leaves(model, [other for other in TRAINING if other != rule]) != full, rule
        except ValueError as error:
            assert "no sharding rule matches" in str(error)


@pytest.mark.quick
def test_moments_lie_where_their_weights_do():
    model = hf.abstract_model(tiny.SIZES)
    weights = {path: spec for path, _, spec in leaves(model, TRAINING)}
    state = jax.eval_shape(lambda m: create_state(m, optax.adam(1.0), freeze_vision=False), model)
    moments = leaves(state.optimizer, TRAINING)
    assert sum("mu." in path for path, _, _ in moments) == sum("nu." in path for path, _, _ in moments) == len(weights)
    for path, shape, spec in moments:
        if shape:
            assert spec == weights[path.split("mu.")[-1].split("nu.")[-1]]


@pytest.mark.quick
@pytest.mark.parametrize(
    "count, axes, sentence",
    [
        (8, {"tensor": 3}, "config.mesh.tensor is 3: expected a divisor of the policy's 4 key/value heads and of the 8 "
         "devices, nearest 2"),
        (6, {"tensor": 4}, "config.mesh.tensor is 4: expected a divisor of the policy's 4 key/value heads and of the 6 "
         "devices, nearest 2"),
        (8, {"tensor": 0}, "config.mesh.tensor is 0: expected a divisor of the policy's 4 key/value heads and of the 8 "
         "devices, nearest 1"),
        (8, {"slices": 3}, "config.mesh.slices is 3: expected a divisor of 8 (8 devices, tensor 1), nearest 2"),
        (8, {"slices": 8, "tensor": 2}, "config.mesh.slices is 8: expected a divisor of 4 (8 devices, tensor 2), "
         "nearest 4"),
        (8, {"slices": 2, "tensor": 2, "fsdp": 4}, "config.mesh.fsdp is 4: expected 2 (8 devices, slices 2, tensor 2) "
         "or -1"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit(count, axes, sentence):
    with pytest.raises(InputError) as error:
        make_mesh([None] * count, key_value_heads=4, **axes)
    assert str(error.value) == sentence
