"""Every process checks its rows on meshes of all kinds; `test_distributed.py` starts it in two processes."""

import sys

from vlaa_jax import distributed


def check(shape: tuple[int, int, int], order: list[int]) -> None:
    import jax
    import numpy as np

    from vlaa_jax import sharding

    mesh = jax.sharding.Mesh(np.asarray(jax.devices())[order].reshape(shape), sharding.AXES)
    with jax.set_mesh(mesh):
        sharding.meet(mesh)
        own = sharding.own_rows(8)
        assert own.tolist() == sorted(own.tolist())
        assert set().union(*distributed.gather(own.tolist())) == set(range(8))
        rows = {"tokens": 10 * own, "positions": np.tile(own, (3, 1)), "scale": np.float32(2)}
        placed = sharding.place_rows(rows)
        assert placed["tokens"].shape == (8,) and placed["positions"].shape == (3, 8)
        everywhere = sharding.fetch_all(placed)
        assert everywhere["tokens"].tolist() == [0, 10, 20, 30, 40, 50, 60, 70]
        assert everywhere["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]] * 3 and everywhere["scale"] == 2
        doubled = jax.jit(lambda rows: rows["tokens"][:, None] * rows["scale"])(placed)
        assert sharding.fetch_rows(doubled).tolist() == [[20.0 * row] for row in own]
        texts = distributed.gather_rows({int(row): f"row {row}" for row in own})
        assert texts == [f"row {row}" for row in range(8)]


if __name__ == "__main__":
    with distributed.joined(sys.argv):
        for mesh_shape in ((1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2)):
            for devices in ([0, 1, 2, 3], [0, 2, 1, 3], [3, 1, 0, 2]):  # of processes 0, 0, 1, 1
                check(mesh_shape, devices)
