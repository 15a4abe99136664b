"""`launch/tpu_train.py` for random text: all of it is the answer; `test_judged_run.py` starts it."""

import pathlib
import runpy

from vlaa_jax.rewards import router
from vlaa_jax.training import settings

if __name__ == "__main__":
    router.answer_text = lambda text, *, strict: (text.strip() or "nothing", "")
    settings.enable_compilation_cache = lambda directory: None  # that of all tests stays
    runpy.run_path(str(pathlib.Path(__file__).parents[2] / "launch" / "tpu_train.py"), run_name="__main__")
