"""A judge in every process of a run; `test_reward_judge.py` starts it in two.

`--folder=DIR` holds `process` and `questions.pickle`, and gets `scores.pickle`.
"""

import pathlib
import pickle
import sys

from vlaa_jax import distributed


def main(folder: pathlib.Path) -> None:
    import jax

    from vlaa_jax.evaluation.judges.open import open_judge
    from vlaa_jax.sharding import make_mesh, meet

    questions = pickle.loads((folder / "questions.pickle").read_bytes())
    mesh = make_mesh(jax.devices(), key_value_heads=1)
    with jax.set_mesh(mesh):
        meet(mesh)
        judge = open_judge(f"process:{folder / 'process'}", rows=3)  # the chips share four rows evenly
        scores = judge(questions)
    assert pickle.dumps(scores) == pickle.dumps(distributed.gather(scores)[0]), "all processes have all scores"
    if distributed.is_first():
        (folder / "scores.pickle").write_bytes(pickle.dumps((scores, dict(judge.problems))))


if __name__ == "__main__":
    with distributed.joined(sys.argv[1:]) as arguments:
        (place,) = [argument.removeprefix("--folder=") for argument in arguments if argument.startswith("--folder=")]
        main(pathlib.Path(place))
