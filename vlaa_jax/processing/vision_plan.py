"""The vision plan: where every patch goes, decided on the host before the device sees anything.

Patches are laid out window by window. A window covers `window_units` x `window_units` merged tokens of one frame and
always has M patch slots; at the right and lower edge some stay empty. The `merge`^2 patches of a merged token are
neighbours, so the merger is a reshape, and one index per token puts merged features back in reading order.

A frame of 3 x 5 merged tokens, named in reading order, in windows of 2 x 2 (`..` is an empty slot):

    frame            windows, their slots in order
    00 01 02 03 04   00 01   02 03   04 ..   10 11   12 13   14 ..
    05 06 07 08 09   05 06   07 08   09 ..   .. ..   .. ..   .. ..
    10 11 12 13 14

Reading order takes slots 0 1 4 5 8, 2 3 6 7 10, 12 13 16 17 20.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from vlaa_jax.errors import InputError

Grid = tuple[int, int, int]  # frames, rows, columns, in patches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionArrays:
    """Vision input of a batch (of one row without the leading B).

    Attributes:
      patches: `[B, W, M, patch values]` normalised pixels.
      valid: `[B, W, M]`, False on empty slots.
      ids: `[B, W, M, 2]` row and column of the patch in its frame.
      frames: `[B, W]` frame that the window belongs to, counted from 1 over all images of the row; 0 is padding.
    """

    patches: np.ndarray
    valid: np.ndarray
    ids: np.ndarray
    frames: np.ndarray


@dataclasses.dataclass(frozen=True)
class WindowGeometry:
    """Sides of a merged token in patches and of a window in merged tokens; both come from the checkpoint's config."""

    merge: int
    window_units: int

    @property
    def slots(self) -> int:
        """M."""
        return (self.merge * self.window_units) ** 2

    def windows(self, grid: Grid) -> int:
        """Number of windows of an image or video."""
        frames, rows, columns = grid
        side = self.merge * self.window_units
        return frames * -(-rows // side) * -(-columns // side)

    def tokens(self, grid: Grid) -> int:
        """Number of merged tokens of an image or video."""
        frames, rows, columns = grid
        return frames * (rows // self.merge) * (columns // self.merge)


def plan(patches: np.ndarray, grids: Sequence[Grid], geometry: WindowGeometry) -> tuple[VisionArrays, np.ndarray]:
    """Lays out the patches of one row's images.

    Args:
      patches: `[sum of frames * rows * columns, patch values]`, image after image, in the order of Qwen2-VL's image
        processor: frame, merged row, merged column, row inside the token, column inside the token.
      grids: size of each image in patches.
      geometry: the checkpoint's.

    Returns:
      Arrays without a batch axis, and for each merged token in reading order its slot among `W * M / merge^2`.

    Raises:
      ValueError: the grids do not account for the patches.
    """
    expected = sum(geometry.tokens(grid) for grid in grids) * geometry.merge**2
    if expected != len(patches):
        raise ValueError(f"{len(patches)} patches, but the grids {list(grids)} hold {expected} in whole merged tokens")
    merge, side = geometry.merge, geometry.window_units
    unit_slots = side * side
    windows = sum(geometry.windows(grid) for grid in grids)
    out = np.zeros((windows * unit_slots, merge * merge, patches.shape[-1]), np.float32)
    valid = np.zeros((windows * unit_slots, merge * merge), bool)
    ids = np.zeros((windows * unit_slots, merge * merge, 2), np.int32)
    frame_of_window = np.zeros(windows, np.int32)
    slots = []
    first_window = first_patch = first_frame = 0
    for grid in grids:
        frames, rows, columns = grid[0], grid[1] // merge, grid[2] // merge
        across, down = -(-columns // side), -(-rows // side)
        frame, row, column = np.meshgrid(np.arange(frames), np.arange(rows), np.arange(columns), indexing="ij")
        window = first_window + (frame * down + row // side) * across + column // side
        slot = (window * unit_slots + (row % side) * side + column % side).ravel()
        count = slot.size * merge * merge
        out[slot] = patches[first_patch : first_patch + count].reshape(slot.size, merge * merge, -1)
        valid[slot] = True
        inside = np.stack(np.divmod(np.arange(merge * merge), merge), axis=-1)
        ids[slot] = np.stack([row.ravel(), column.ravel()], axis=-1)[:, None] * merge + inside
        frame_of_window[first_window : first_window + frames * down * across] = (
            1 + first_frame + np.repeat(np.arange(frames), down * across)
        )
        slots.append(slot)
        first_window += frames * down * across
        first_patch += count
        first_frame += frames
    shape = (windows, geometry.slots)
    arrays = VisionArrays(
        out.reshape(*shape, patches.shape[-1]), valid.reshape(shape), ids.reshape(*shape, 2), frame_of_window
    )
    return arrays, np.concatenate(slots).astype(np.int32) if slots else np.zeros(0, np.int32)


def pad_windows(rows: Sequence[VisionArrays], windows: int) -> VisionArrays:
    """Stacks rows into `[B, W, ...]`, each padded with empty windows to W = `windows`.

    Raises:
      InputError: a row has more windows.
    """
    largest = max(len(row.frames) for row in rows)
    if largest > windows:
        raise InputError(
            f"the images of a row have {largest} vision windows, but there is room for {windows}: raise that number"
        )

    def stack(*leaves: np.ndarray) -> np.ndarray:
        out = np.zeros((len(leaves), windows, *leaves[0].shape[1:]), leaves[0].dtype)
        for row, leaf in zip(out, leaves, strict=True):
            row[: len(leaf)] = leaf
        return out

    return jax.tree.map(stack, *rows)
