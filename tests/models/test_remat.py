"""What a layer keeps for its backward pass: the same gradients whatever it is, and what runs a second time."""

import collections

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.interpreters import partial_eval

from vlaa_jax.models import attention as attention_module
from vlaa_jax.models.attention import Causal
from vlaa_jax.models.layers import REMAT_POLICIES
from vlaa_jax.models.qwen2_5_vl.language import LanguageModel


def loss(language: LanguageModel, x: jax.Array, remat: str) -> jax.Array:
    """A weighted sum of the states of one row, whose last tokens are padding."""
    length = x.shape[1]
    segments = (jnp.arange(length) < length - 3).astype(jnp.int32)[None]
    positions = jnp.broadcast_to(jnp.arange(length), (3, 1, length))
    states = language(x, positions, Causal(segments), remat)
    return jnp.vdot(states[:, :-3], jnp.sin(jnp.arange(states[:, :-3].size)).reshape(states[:, :-3].shape))


def embeddings(length: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((1, length, tiny.SIZES.text.width)), jnp.float32)


@pytest.mark.quick
def test_gradients_do_not_depend_on_the_policy():
    language, x = tiny.model().language, embeddings(16)
    run = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    expected = jax.tree.leaves(run(language, x, "none"))
    for remat in REMAT_POLICIES:
        for ours, theirs in zip(jax.tree.leaves(run(language, x, remat)), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max(), err_msg=remat)


@pytest.mark.parametrize(
    "remat, forward_kernels, products",
    [
        # 7 products with weights, 14 in the backward pass; then again 6, all but `down`, whose result nothing reads.
        ("layer", 2, 7 + 14 + 6),
        ("attention", 1, 7 + 14 + 6),
        ("products", 1, 7 + 14),
        ("none", 1, 7 + 14),
    ],
)
def test_what_runs_again_on_tpu(remat, forward_kernels, products, monkeypatch):
    monkeypatch.setattr(attention_module, "platform", lambda: "tpu")
    counts: collections.Counter[str] = collections.Counter()

    def count(jaxpr: jax.extend.core.Jaxpr) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "pallas_call":
                counts[equation.params["name"].split("_")[2]] += 1
            elif equation.primitive.name == "dot_general":
                counts["product"] += all(operand.aval.ndim == 2 for operand in equation.invars)
            else:
                for inner in jax.extend.core.jaxprs_in_params(equation.params):
                    count(inner)

    # Both layers are steps of one loop, so all is counted once. 300 tokens are enough for the kernel. What nothing
    # reads is dropped as the compiler does.
    jaxpr = jax.make_jaxpr(lambda *a: jax.grad(loss)(*a, remat))(tiny.model().language, embeddings(300)).jaxpr
    count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])
    assert counts["product"] == products
    assert (counts["fwd"], counts["dq"], counts["dkv"]) == (forward_kernels, 1, 1)
