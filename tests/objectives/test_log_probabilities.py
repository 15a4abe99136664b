import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from xla_flags import of_devices

import vlaa_jax
from vlaa_jax.errors import InputError
from vlaa_jax.objectives.log_probabilities import token_log_probabilities


def plain(states, head, targets, temperature=1.0):
    """The same quantities from all logits at once."""
    logits = jnp.einsum("...D,VD->...V", states, head, preferred_element_type=jnp.float32) / temperature
    log_softmax = jax.nn.log_softmax(logits)
    log_probability = jnp.take_along_axis(log_softmax, targets[..., None], axis=-1)[..., 0]
    return log_probability, -jnp.sum(jnp.exp(log_softmax) * log_softmax, axis=-1)


def example(shape, width=16, vocabulary=101, seed=0, dtype=jnp.float32):
    states_key, head_key, target_key = jax.random.split(jax.random.key(seed), 3)
    states = jax.random.normal(states_key, (*shape, width), dtype)
    head = jax.random.normal(head_key, (vocabulary, width))
    return states, head, jax.random.randint(target_key, shape, 0, vocabulary)


@pytest.mark.quick
def test_two_words_by_hand():
    # Logits 0 and ln 3 give probabilities 1/4 and 3/4; at temperature 1/2 they are 0 and 2 ln 3: 1/10 and 9/10.
    states, head = jnp.array([[1.0], [1.0]]), jnp.array([[0.0], [math.log(3.0)]])
    log_probability, entropy = token_log_probabilities(states, head, jnp.array([0, 1]))
    np.testing.assert_allclose(log_probability, [math.log(0.25), math.log(0.75)], rtol=1e-6)
    np.testing.assert_allclose(entropy, [0.5623351, 0.5623351], rtol=1e-6)
    log_probability, entropy = token_log_probabilities(states, head, jnp.array([0, 1]), temperature=0.5)
    np.testing.assert_allclose(log_probability, [math.log(0.1), math.log(0.9)], rtol=1e-6)
    np.testing.assert_allclose(entropy, [0.3250830, 0.3250830], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        pytest.param((48,), 16, marks=pytest.mark.quick),
        pytest.param((3, 17), 7, marks=pytest.mark.quick),  # 8 chunks of 7 hold 51 tokens and 5 of padding
        ((48,), 1024),
        ((2, 4, 5), 1),
        ((2, 4, 5), 39),
        ((), 8),
    ],
)
def test_equals_all_logits_at_once(shape, chunk):
    states, head, targets = example(shape)
    weights = jax.random.normal(jax.random.key(9), shape)

    def weighted(function, states, head):
        log_probability, entropy = function(states, head)
        return jnp.sum(weights * log_probability), (log_probability, entropy)

    def chunked_function(states, head):
        return token_log_probabilities(states, head, targets, temperature=0.8, chunk=chunk)

    def plain_function(states, head):
        return plain(states, head, targets, temperature=0.8)

    gradient = jax.jit(jax.grad(weighted, argnums=(1, 2), has_aux=True), static_argnums=0)
    (states_gradient, head_gradient), outputs = gradient(chunked_function, states, head)
    (states_expected, head_expected), expected = gradient(plain_function, states, head)
    np.testing.assert_allclose(outputs[0], expected[0], atol=2e-5)
    np.testing.assert_allclose(outputs[1], expected[1], atol=2e-5)
    np.testing.assert_allclose(states_gradient, states_expected, atol=1e-5 * np.abs(states_expected).max())
    np.testing.assert_allclose(head_gradient, head_expected, atol=1e-5 * np.abs(head_expected).max())


@pytest.mark.quick
@pytest.mark.parametrize("count", [0, 5, 8, 17, 20])
def test_chunks_without_a_target_that_counts_are_skipped(count):
    """Of 20 targets in chunks of 7: what lies in a chunk behind the last that counts may even be NaN."""
    states, head, targets = example((20,))
    chunks = -(-count // 7)
    hidden = states.at[7 * chunks :].set(jnp.nan)
    weights = (jnp.arange(20) < count) * jax.random.normal(jax.random.key(9), (20,))

    def weighted(states, head, function):
        return jnp.vdot(weights, function(states, head)[0])

    ours = lambda s, h: token_log_probabilities(s, h, targets, chunk=7, count=jnp.int32(count))  # noqa: E731
    found, gradients = jax.jit(jax.value_and_grad(lambda *a: weighted(*a, ours), (0, 1)))(hidden, head)
    expected, theirs = jax.value_and_grad(lambda *a: weighted(*a, lambda s, h: plain(s, h, targets)), (0, 1))(
        states, head
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for gradient, their in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(gradient, their, atol=1e-5 * max(1e-6, np.abs(their).max()))
    assert (ours(hidden, head)[0][7 * chunks :] == 0).all()


def test_bfloat16_states_keep_a_float32_head_gradient():
    states, head, targets = example((256,), dtype=jnp.bfloat16)

    def loss(function, states, head):
        return jnp.mean(function(states, head))

    def chunked_function(states, head):
        return token_log_probabilities(states, head, targets, chunk=16)[0]

    def float32_function(states, head):
        return plain(states.astype(jnp.float32), head.astype(jnp.bfloat16).astype(jnp.float32), targets)[0]

    value, (states_gradient, head_gradient) = jax.value_and_grad(loss, argnums=(1, 2))(chunked_function, states, head)
    expected, (states_expected, head_expected) = jax.value_and_grad(loss, argnums=(1, 2))(
        float32_function, states, head
    )
    assert states_gradient.dtype == jnp.bfloat16 and head_gradient.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # products of bfloat16 numbers, added in float32
    # Sums that were kept in bfloat16, or rounded to it at the end, would all be bfloat16 numbers.
    assert np.mean(head_gradient != head_gradient.astype(jnp.bfloat16).astype(jnp.float32)) > 0.9
    # The gradient of a logit is rounded to bfloat16 once (2^-9 of its size); sums over 256 tokens stay in float32.
    np.testing.assert_allclose(head_gradient, head_expected, atol=4e-3 * np.abs(head_expected).max())
    np.testing.assert_allclose(
        states_gradient.astype(jnp.float32), states_expected, atol=1e-2 * np.abs(states_expected).max()
    )


@pytest.mark.quick
def test_the_entropy_carries_no_gradient():
    states, head, targets = example((5,))
    gradients = jax.grad(lambda s, h: jnp.sum(token_log_probabilities(s, h, targets)[1]), argnums=(0, 1))(states, head)
    assert all(not np.any(gradient) for gradient in gradients)


def shapes_inside(jaxpr):
    """The shapes of every value that a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda leaf: isinstance(leaf, (ClosedJaxpr, Jaxpr))):
            if isinstance(parameter, (ClosedJaxpr, Jaxpr)):
                yield from shapes_inside(getattr(parameter, "jaxpr", parameter))


def most_tokens_beside_the_vocabulary(function, vocabulary, *arguments):
    shapes = list(shapes_inside(jax.make_jaxpr(jax.grad(function, argnums=(0, 1)))(*arguments).jaxpr))
    return max(math.prod(shape) // vocabulary for shape in shapes if vocabulary in shape)


def test_no_array_of_all_tokens_by_the_vocabulary():
    vocabulary, chunk, tokens = 997, 32, (16, 64)
    states, head, targets = example(tokens, width=8, vocabulary=vocabulary)

    def chunked_loss(states, head):
        return jnp.sum(token_log_probabilities(states, head, targets, chunk=chunk)[0])

    def plain_loss(states, head):
        return jnp.sum(plain(states, head, targets)[0])

    assert most_tokens_beside_the_vocabulary(chunked_loss, vocabulary, states, head) == chunk
    assert most_tokens_beside_the_vocabulary(plain_loss, vocabulary, states, head) == math.prod(tokens)  # it would show

    compiled = jax.jit(jax.grad(chunked_loss, argnums=(0, 1))).lower(states, head).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < math.prod(tokens) * vocabulary * 4 / 4


FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from vlaa_jax.objectives.log_probabilities import token_log_probabilities

mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
rows, everywhere = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
states = jax.random.normal(jax.random.key(0), (8, 64, 32))
head = jax.random.normal(jax.random.key(1), (512, 32))
targets = jax.random.randint(jax.random.key(2), (8, 64), 0, 512)

def loss(states, head):
    return jnp.mean(token_log_probabilities(states, head, targets, chunk=128)[0])

gradient = jax.grad(loss, argnums=(0, 1))
split = jax.jit(gradient, in_shardings=(rows, everywhere), out_shardings=(rows, everywhere))
program = split.lower(states, head).compile().as_text()
for one, four in zip(gradient(states, head), split(states, head)):
    np.testing.assert_allclose(one, four, atol=1e-6)
moved = [name for name in ("all-gather", "all-to-all", "collective-permute") if f"{name}(" in program]
assert not moved, moved
assert "all-reduce(" in program  # of the head's gradient
"""


def test_rows_split_over_devices_stay_where_they_are():
    """Each device works on its own tokens in every chunk; nothing is exchanged but the head's gradient."""
    root = pathlib.Path(vlaa_jax.__file__).parents[1]
    environment = os.environ | {
        "XLA_FLAGS": of_devices(4),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
    }
    result = subprocess.run([sys.executable, "-c", FOUR_DEVICES], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.quick
def test_refuses_what_does_not_fit():
    states, head, targets = example((4,))
    with pytest.raises(InputError, match="temperature is 0"):
        token_log_probabilities(states, head, targets, temperature=0.0)
    with pytest.raises(InputError, match="chunk is 0"):
        token_log_probabilities(states, head, targets, chunk=0)
    with pytest.raises(InputError, match="do not fit"):
        token_log_probabilities(states, head, targets[:3])
