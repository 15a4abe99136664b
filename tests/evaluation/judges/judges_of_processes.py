"""Judges in every process of a run: `--folder=DIR` holds `process`, `policy` and `questions.pickle`, and gets the scores.

`test_reward_judge.py` starts it in two processes.
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
        names = f"process:{folder / 'process'}", f"likelihood:{folder / 'policy'}"
        judges = [open_judge(name, rows=3) for name in names]  # chips share four rows evenly
        scores = [judge(questions) for judge in judges]
    assert pickle.dumps(scores) == pickle.dumps(distributed.gather(scores)[0]), "all processes have all scores"
    problems = [dict(judge.problems) for judge in judges]
    if distributed.is_first():
        (folder / "scores.pickle").write_bytes(pickle.dumps((scores, problems)))


if __name__ == "__main__":
    with distributed.joined(sys.argv[1:]) as arguments:
        (place,) = [argument.removeprefix("--folder=") for argument in arguments if argument.startswith("--folder=")]
        main(pathlib.Path(place))
