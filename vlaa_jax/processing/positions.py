"""Three-axis positions of M-RoPE, made on the host."""

from collections.abc import Sequence

import numpy as np

from vlaa_jax.processing.vision_plan import Grid


def mrope_positions(
    vision: np.ndarray,
    grids: Sequence[Grid],
    *,
    merge: int,
    tokens_per_second: float | None = 2,
    seconds_per_grid: Sequence[float] | None = None,
) -> np.ndarray:
    """Positions of one sequence (Qwen2.5-VL, arXiv 2502.13923, section 2.1.3).

    Text advances all three axes together. A vision run starts one past the largest position so far; inside it time,
    height and width move by themselves; text after it goes on one past its largest position on any axis.

    Args:
      vision: `[T]` booleans, True on image and video tokens.
      grids: frames, rows and columns in patches of each image or video, in order of appearance.
      merge: patches on the side of a merged token.
      tokens_per_second: temporal positions that one second takes (config); None: every frame takes one (Qwen2-VL).
      seconds_per_grid: seconds between two frames of each grid; images may have any number there.

    Returns:
      `[3, T]` int32.
    """
    positions = np.zeros((3, len(vision)), np.int32)
    seconds_per_grid = seconds_per_grid or [0.0] * len(grids)
    index = start = 0
    for (frames, rows, columns), seconds in zip(grids, seconds_per_grid, strict=True):
        if not vision[index:].any():
            raise ValueError(f"{len(grids)} images, but fewer runs of vision tokens")
        text = int(np.argmax(vision[index:]))
        positions[:, index : index + text] = start + np.arange(text)
        index, start = index + text, start + text
        pace = 1 if tokens_per_second is None else seconds * tokens_per_second
        time = (np.arange(frames) * pace).astype(np.int32)
        block = np.meshgrid(time, np.arange(rows // merge), np.arange(columns // merge), indexing="ij")
        count = block[0].size
        if not vision[index : index + count].all() or index + count > len(vision):
            raise ValueError(f"a grid of {frames}x{rows}x{columns} patches needs {count} vision tokens in a row")
        positions[:, index : index + count] = start + np.stack([axis.ravel() for axis in block])
        index, start = index + count, int(positions[:, index : index + count].max()) + 1
    if vision[index:].any():
        raise ValueError(f"{len(grids)} images, but more runs of vision tokens")
    positions[:, index:] = start + np.arange(len(vision) - index)
    return positions
