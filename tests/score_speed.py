"""How much faster all steps of all solutions of a question are scored in one pass than prefix by prefix.

python tests/score_speed.py --size=cpu

Draws a reward model with random weights, a question with a picture, and 16 solutions of 10 steps. Scores them in one
row that holds the prompt once, and as 160 rows that each hold prompt, picture and a prefix, in batches of 16 rows of
one length, so that no padding runs. The two are compared, then timed in turn; the first run of each, which compiles,
does not count.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx

from vlaa_jax.benchmark.presets import PRESETS
from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import ModelConfig
from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.objectives.shared_prompt import longest_row
from vlaa_jax.objectives.step_scores import score_steps
from vlaa_jax.processing.batches import Rows, pack
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.processing.solutions import SolutionShape, pad_solutions

SOLUTIONS, STEPS = 16, 10
_MULTIPLE = 32  # of the lengths of rows with a prefix


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a measurement.

    Attributes:
      model: the backbone.
      grid: patches of the picture: frames, height, width.
      text: tokens of the question.
      step: tokens of a step. At `cpu` no prefix needs padding to `_MULTIPLE`.
    """

    model: ModelConfig
    grid: tuple[int, int, int]
    text: int
    step: int


SIZES = {
    "tiny": Size(tiny.SIZES, (1, 4, 6), 5, 2),
    "cpu": Size(PRESETS["cpu"].model, (1, 32, 32), 64, 32),  # 512 wide, 8 layers; 448 x 448 pixels
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
      one, prefixes: seconds of each run.
      row, rows: tokens that ran, padding included.
      difference: the largest between two logits of the same step.
      spread: standard deviation of the logits.
    """

    one: list[float]
    prefixes: list[float]
    row: int
    rows: int
    difference: float
    spread: float

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return statistics.median(self.prefixes) / statistics.median(self.one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu", help="default %(default)s")
    parser.add_argument("--runs", type=int, default=5, help="of each, default %(default)s")
    options = parser.parse_args()
    found = measure(SIZES[options.size], options.runs)
    for name, seconds, tokens in (("one pass", found.one, found.row), ("prefixes", found.prefixes, found.rows)):
        each = ", ".join(f"{second:.3f}" for second in seconds)
        print(f"{name}: {statistics.median(seconds):.3f} s for {tokens:,} tokens ({each})")
    print(f"{SOLUTIONS} solutions of {STEPS} steps in one pass: {found.ratio:.1f} times as fast")
    print(f"logits differ by at most {found.difference:.1e}; their standard deviation is {found.spread:.2f}")


def measure(size: Size, runs: int) -> Found:
    """Compares and times the two ways."""
    model = jax.jit(lambda: RewardModel(size.model, nnx.Rngs(0)))()
    generator = np.random.default_rng(0)
    prompt = tiny.prompt(generator, [size.grid, size.text], size.model)
    length = STEPS * size.step
    ends = np.arange(1, STEPS + 1, dtype=np.int32) * size.step - 1
    solutions = [
        (generator.integers(10, size.model.text.vocabulary, length).astype(np.int32), ends) for _ in range(SOLUTIONS)
    ]
    row = longest_row(len(prompt.tokens), SOLUTIONS, length)
    shape = SolutionShape(len(prompt.tokens), len(prompt.vision.frames), SOLUTIONS, length, STEPS, row)
    batch = pad_solutions([prompt], [solutions], shape)
    prefixes = [prefix_rows(size, prompt, [own[: end + 1] for own, _ in solutions]) for end in ends]

    one_pass = lambda: np.asarray(score_steps(model, batch, dtype="float32"))[0]  # noqa: E731
    by_prefix = lambda: np.stack([np.asarray(score_prefixes(model, *rows)) for rows in prefixes], axis=1)  # noqa: E731
    first, second = one_pass(), by_prefix()
    times: dict[str, list[float]] = {"one": [], "prefixes": []}
    for _ in range(runs):
        for name, work in (("one", one_pass), ("prefixes", by_prefix)):
            times[name].append(seconds(work))
    return Found(
        **times,
        row=row,
        rows=sum(rows.tokens.size for rows, _ in prefixes),
        difference=float(np.abs(first - second).max()),
        spread=float(first.std()),
    )


def prefix_rows(size: Size, prompt: EncodedPrompt, prefixes: list[np.ndarray]) -> tuple[Rows, np.ndarray]:
    """Rows that hold prompt, picture and a prefix each, all of one length; and the place of its last token."""
    end = len(prompt.tokens) + len(prefixes[0])
    rows, _ = pack(
        [[(prompt, prefix)] for prefix in prefixes],
        count=len(prefixes),
        length=-(-end // _MULTIPLE) * _MULTIPLE,
        windows=len(prompt.vision.frames),
        targets=len(prefixes[0]),
        slots_per_window=size.model.vision.window_units**2,
        no_vision=jax.tree.map(lambda leaf: leaf[:0], prompt.vision),
    )
    return rows, np.full(len(prefixes), end - 1)


@jax.jit
def score_prefixes(model: RewardModel, rows: Rows, ends: jax.Array) -> jax.Array:
    """Logits `[B]` of the rows' last tokens."""
    features = model.vision(rows.vision, jnp.float32)
    states = model(rows.tokens, rows.positions, Causal(rows.segments), features, rows.feature_index)
    return model.reward_head(jnp.take_along_axis(states, ends[:, None, None], axis=1)[:, 0])


def seconds(work: Callable[[], np.ndarray]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
