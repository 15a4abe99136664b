"""Supervised fine-tuning on traces and answers (VLAA-Thinking, section 3.1).

--config=configs/sft.py:see    the demo's first stage: a policy learns to name what its tower finds
--config=configs/sft.py        the demo's second stage: two styles of answering; makes the start policy of GRPO
--config=configs/sft.py:3b     the paper's recipe; also 7b, qwen2-2b, qwen2-7b
"""

from ml_collections import ConfigDict

from vlaa_jax.errors import InputError

_PRESETS = ("see", "demo", "3b", "7b", "qwen2-2b", "qwen2-7b")


def get_config(arg: str = "demo") -> ConfigDict:
    """The config of a preset."""
    arg = arg or "demo"
    if arg not in _PRESETS:
        raise InputError(f"preset {arg!r} does not exist: expected one of {', '.join(_PRESETS)}")
    config = _recipe()
    if arg in ("see", "demo"):
        _demo(config)
    if arg == "see":
        _see(config)
    return config.lock()


def _recipe() -> ConfigDict:
    """The paper's recipe; what it does not state says so."""
    config = ConfigDict()
    config.task = "sft"
    config.seed = 0
    config.epochs = 1  # 24,320 examples make 190 steps, 126,080 make 985
    config.steps = 0  # updates; 0: as many as the epochs need

    config.model = ConfigDict()
    config.model.checkpoint = ""  # Hugging Face directory
    config.model.dtype = "bfloat16"  # compute; master weights are float32. Not stated in the paper
    config.model.freeze_vision = True
    config.model.remat = "attention"  # what is kept for the backward pass: layer, attention, products or none

    config.mesh = ConfigDict()  # chips
    config.mesh.slices = 1  # of a pod, joined by the data-centre network
    config.mesh.fsdp = -1  # of a slice, over which rows and training weights are split; -1: all that are left
    config.mesh.tensor = 1  # that share one copy of the rollout's weights; divides the key/value heads

    config.data = ConfigDict()
    config.data.train = ""  # shards as DIRECTORY:SPLIT
    config.data.evaluation = ""  # may stay empty
    config.data.min_pixels = 0  # 0: the checkpoint's
    config.data.max_pixels = 1280 * 28 * 28  # not stated in the paper for training
    config.data.skip_bad = False  # go on without records that cannot be used

    config.prompt = ConfigDict()
    config.prompt.system = ""  # file with the system message; '' is ours
    # Sentence after a question of each verifier; '' is ours.
    config.prompt.instructions = ConfigDict({"digit": "", "mcq": "", "math": "", "iou": "", "open_ended": ""})

    config.updates = ConfigDict()
    config.updates.examples = 128  # however they are packed
    config.updates.rows = 16  # of a micro-batch
    config.updates.row_tokens = 4096
    config.updates.row_windows = 200
    config.updates.row_targets = 2048

    config.objective = ConfigDict()
    config.objective.normalisation = "tokens"  # mean over the update's answer tokens; not stated in the paper
    config.objective.chunk = 1024  # tokens whose logits exist at once

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-5  # not stated in the paper
    config.optimizer.floor = 0.0
    config.optimizer.warmup_share = 0.03
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.first_moment_dtype = "float32"  # bfloat16 saves a sixth of the state
    config.optimizer.memory = "device"  # pinned_host: moments wait in the host's memory, an update streams them

    # How held-out answers are sampled and judged; training does not read it.
    config.rollout = ConfigDict()
    config.rollout.temperature = 0.8
    config.rollout.top_k = 0
    config.rollout.top_p = 1.0
    config.rollout.new_tokens = 1024
    config.rollout.longest_prompt = 2048  # tokens; longer ones are skipped
    config.rollout.most_windows = 100  # of a prompt's images; prompts with more are skipped
    config.rollout.prompt_buckets = ()  # tokens; empty: chosen from the data
    config.rollout.window_buckets = ()
    config.rollout.most_buckets = 2  # of each, where they are chosen: programs are compiled for every pair
    config.rollout.row_ratio = 2  # between the numbers of rows that decoding has programs for, as rows end

    config.rewards = ConfigDict()
    config.rewards.enabled = ("digit", "mcq", "math", "iou", "open_ended")
    config.rewards.scorer = ""
    config.rewards.math_workers = 2

    config.evaluation = ConfigDict()
    config.evaluation.every = 50
    config.evaluation.records = 512
    config.evaluation.samples = 4
    config.evaluation.batch = 64

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 50
    config.checkpoint.keep = 2

    config.log = ConfigDict()
    config.log.samples = 4
    return config


def _demo(config: ConfigDict) -> None:
    """Small policy, small pictures; the checkpoint is the export of the stage before."""
    config.steps = 600
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.data.train = "demo:sft"
    config.data.evaluation = "demo:heldout"
    config.data.max_pixels = 0
    config.updates.examples = 16
    config.updates.rows = 8
    config.updates.row_tokens = 512
    config.updates.row_windows = 32
    config.updates.row_targets = 272
    config.optimizer.learning_rate = 5e-4
    config.optimizer.floor = 5e-5
    config.optimizer.weight_decay = 0.01
    config.optimizer.beta2 = 0.98
    config.rollout.temperature = 1.0
    config.rollout.new_tokens = 192
    config.rollout.longest_prompt = 256
    config.rollout.most_windows = 32
    config.rollout.most_buckets = 1
    config.rollout.row_ratio = 4
    config.rewards.scorer = "data_prep.digit_scenes.facts:FactScorer"
    config.evaluation.every = 300
    config.evaluation.records = 260
    config.evaluation.samples = 2
    config.evaluation.batch = 65
    config.checkpoint.every = 300


def _see(config: ConfigDict) -> None:
    """Every trace lists the digits; the checkpoint is what `python -m data_prep digit-policy` wrote."""
    config.steps = 3600
    config.data.train = "demo:see"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.floor = 1e-4
