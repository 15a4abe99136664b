"""Tree search over steps: from questions with verifiable answers to judged partial solutions (ViLBench, section 4).

--config=configs/search.py        the demo: the start policy on digit scenes, on a laptop
--config=configs/search.py:3b     sizes for a pod; asks for a checkpoint and shards

The paper shows a tree and its values but states nothing of the search: formula, constants, sizes, policy and judge are
our choices throughout.
"""

from ml_collections import ConfigDict

from vlaa_jax.errors import InputError

_PRESETS = ("demo", "3b")


def get_config(arg: str = "demo") -> ConfigDict:
    """The config of a preset."""
    name = arg or "demo"
    if name not in _PRESETS:
        raise InputError(f"preset {arg!r} does not exist: expected one of {', '.join(_PRESETS)}")
    config = _large()
    if name == "demo":
        _demo(config)
    return config.lock()


def _large() -> ConfigDict:
    config = ConfigDict()
    config.task = "search"
    config.seed = 0  # of the questions drawn, of all samples and of what is held out

    config.model = ConfigDict()
    config.model.checkpoint = ""  # Hugging Face directory of the policy
    config.model.dtype = "bfloat16"

    config.mesh = ConfigDict()  # chips
    config.mesh.slices = 1
    config.mesh.fsdp = -1  # over which questions are split; -1: all that are left
    config.mesh.tensor = 1  # that share one copy of the weights; divides the key/value heads

    config.data = ConfigDict()
    config.data.questions = ""  # shards as DIRECTORY:SPLIT
    config.data.limit = 0  # questions drawn; 0: all. ViLReward-73K has 16,926
    config.data.min_pixels = 0  # 0: the checkpoint's
    config.data.max_pixels = 1280 * 28 * 28
    config.data.skip_bad = False  # go on without records that cannot be used

    config.prompt = ConfigDict()
    config.prompt.system = ""  # file with the system message; '' is the policy's own, else ours
    config.prompt.instructions = ConfigDict({"digit": "", "mcq": "", "math": "", "iou": "", "open_ended": ""})

    config.search = ConfigDict()
    config.search.simulations = 16  # of a question: nodes that rollouts start from
    config.search.leaves = 1  # of them at once in a tree; more take fewer rounds, and know less
    config.search.rollouts = 8  # from each
    config.search.depth = 10  # of the deepest node that rollouts start from, in steps
    config.search.width = 8  # children of a node that selection goes on to, the most often drawn; 0: all
    config.search.exploration = 1.0  # PUCT's constant
    config.search.prior = "visits"  # of PUCT: a child's share of the policy's draws; or uniform
    config.search.duplicates = "normalised"  # one step: equal but for case, blanks, final stop; or only if exact

    config.value = ConfigDict()  # of a node: mean reward of the rollouts through it, then
    config.value.smoothing = 0.0  # so many rollouts of reward 1 and of reward 0 are added
    config.value.judge = ""  # a judge of steps with scores in [0, 1], as process:DIR
    config.value.judge_weight = 0.0  # of its score in the value

    config.rollout = ConfigDict()
    config.rollout.questions = 128  # trees that grow at once
    config.rollout.temperature = 1.0
    config.rollout.top_k = 0
    config.rollout.top_p = 1.0
    config.rollout.new_tokens = 1024  # of a rollout
    config.rollout.longest_prompt = 2048  # tokens; questions with longer ones are skipped
    config.rollout.most_windows = 100  # of a question's images; questions with more are skipped
    config.rollout.prompt_buckets = ()  # tokens; empty: chosen from the data
    config.rollout.window_buckets = ()
    config.rollout.most_buckets = 2  # of each, where they are chosen
    config.rollout.process_buckets = (64, 256, 768)  # tokens of a partial solution; longer ones are not sampled from
    config.rollout.row_ratio = 2  # between the numbers of rows that decoding has programs for, as rows end

    config.rewards = ConfigDict()
    config.rewards.enabled = ("digit", "mcq", "math", "iou")
    config.rewards.scorer = ""  # package.module:Class, needed for open-ended records
    config.rewards.strict = False  # also demand one think block before the answer and nothing else
    config.rewards.math_workers = 2

    config.export = ConfigDict()
    config.export.drop_decided = True  # questions whose rollouts are all right or all wrong
    config.export.least_visits = 2  # of an exported node; one that states the answer needs none
    config.export.heldout = 0.1  # share of the questions
    config.export.name = "process_search"
    config.export.version = "1.0.0"
    config.export.records_per_shard = 4096
    return config


def _demo(config: ConfigDict) -> None:
    """The policy that ships with the package, on questions of its training glyphs."""
    config.model.checkpoint = "demo"
    config.model.dtype = "float32"
    config.data.questions = "demo:rl"
    config.data.limit = 2000
    config.data.max_pixels = 0
    config.search.simulations = 4
    config.search.rollouts = 4
    # The policy seldom misreads a digit. A process model learns to look from such steps alone: rollouts start from them
    # as often as from the others, and those that were drawn once count too.
    config.search.prior = "uniform"
    config.export.least_visits = 1
    config.search.depth = 16
    config.rollout.questions = 64
    config.rollout.new_tokens = 192
    config.rollout.longest_prompt = 256
    config.rollout.most_windows = 32
    # Fewer programs than by default: a small model samples as long as it compiles.
    config.rollout.most_buckets = 1
    config.rollout.process_buckets = (128,)
    config.rollout.row_ratio = 4
    config.rewards.enabled = ("digit", "mcq", "math", "iou", "open_ended")
    config.rewards.scorer = "data_prep.digit_scenes.facts:FactScorer"
