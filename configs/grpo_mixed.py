"""GRPO with the mixed reward (VLAA-Thinking, section 4).

--config=configs/grpo_mixed.py                 the demo: a small policy and digit scenes, on a laptop
--config=configs/grpo_mixed.py:3b              the paper's recipe; also 7b, qwen2-2b, qwen2-7b
--config=configs/grpo_mixed.py:3b,basic        cosine to 0, no KL; also lr1, lr2, kl1, kl2 (= the default)
--config=configs/grpo_mixed.py:3b,rules        records of the rule-based verifiers only (Table 5, row 5)
"""

from ml_collections import ConfigDict

from vlaa_jax.errors import InputError

_PRESETS = ("demo", "3b", "7b", "qwen2-2b", "qwen2-7b")
_VARIANTS = ("basic", "lr1", "lr2", "kl1", "kl2", "rules")


def get_config(arg: str = "demo") -> ConfigDict:
    """The config of `PRESET[,VARIANT...]`."""
    name, *variants = (arg or "demo").split(",")
    if name not in _PRESETS or set(variants) - set(_VARIANTS):
        raise InputError(
            f"preset {arg!r} does not exist: expected one of {', '.join(_PRESETS)}, then any of {', '.join(_VARIANTS)}"
        )
    config = _recipe()
    if name == "demo":
        _demo(config)
    for variant in variants:
        _vary(config, variant)
    return config.lock()


def _recipe() -> ConfigDict:
    """The paper's recipe; what it does not state says so."""
    config = ConfigDict()
    config.task = "grpo"
    config.seed = 0
    config.steps = 49  # one pass over 25,195 prompts; a step is one rollout with all its updates

    config.model = ConfigDict()
    config.model.checkpoint = ""  # Hugging Face directory; Instruct, no SFT
    config.model.dtype = "bfloat16"  # compute; master weights are float32. Not stated in the paper
    config.model.freeze_vision = True  # not stated in the paper for GRPO (frozen in its SFT)
    config.model.remat = "attention"  # what is kept for the backward pass: layer, attention, products or none
    config.model.reference_memory = "device"  # pinned_host: between uses the reference waits in the host's memory

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

    config.rollout = ConfigDict()
    config.rollout.prompts = 512
    config.rollout.batch = 256  # prompts that are answered at once; all where that is more
    config.rollout.oversample = 1.0  # dynamic sampling: a step may draw so many times its prompts; 1: off
    # The chips sample for the next step while this one is judged: completions are one step old.
    config.rollout.ahead = False
    config.rollout.group_size = 4
    config.rollout.temperature = 0.8
    config.rollout.top_k = 0  # no truncation: not stated in the paper
    config.rollout.top_p = 1.0
    config.rollout.new_tokens = 1024  # not stated in the paper
    config.rollout.longest_prompt = 2048  # tokens; longer ones are skipped
    config.rollout.most_windows = 100  # of a prompt's images; prompts with more are skipped
    config.rollout.prompt_buckets = ()  # tokens; empty: chosen from the data
    config.rollout.window_buckets = ()
    config.rollout.most_buckets = 2  # of each, where they are chosen: programs are compiled for every pair
    config.rollout.row_ratio = 2  # between the numbers of rows that decoding has programs for, as rows end

    config.updates = ConfigDict()
    config.updates.completions = 256  # 8 updates a step
    config.updates.epochs = 1
    config.updates.micro_batch = 16  # groups
    config.updates.row_completions = 0  # of a group, in one row behind the prompt; 0: all
    config.updates.row_buckets = ()  # tokens of a row; empty: a ladder from the shortest to the longest
    config.updates.most_row_buckets = 12  # of that ladder

    config.objective = ConfigDict()
    config.objective.clip_low = 0.2  # not stated in the paper
    config.objective.clip_high = 0.2  # not stated in the paper
    config.objective.ratio = "token"
    config.objective.policy_loss = "clip"
    config.objective.aggregation = "sequence_mean"
    config.objective.constant_length = 0
    config.objective.advantage_baseline = (
        "group"  # (r - mean) / (unbiased deviation + epsilon): not stated in the paper
    )
    config.objective.advantage_scale = "group"
    config.objective.advantage_epsilon = 1e-9
    config.objective.kl_placement = "loss"
    config.objective.kl_estimator = "k3"  # not stated in the paper
    config.objective.kl_coefficient = 1e-3
    config.objective.kl_target = 5e-4  # 0: the coefficient stays
    config.objective.kl_horizon = 10_000  # completions; not stated in the paper
    config.objective.mask_truncated = False
    config.objective.importance_cap = 0.0  # 0: no weights for sampler/trainer mismatch
    config.objective.chunk = 1024  # tokens whose logits exist at once

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-6  # peak: not stated in the paper
    config.optimizer.floor = 5e-7
    config.optimizer.warmup_share = 0.03
    config.optimizer.weight_decay = 0.0  # not stated in the paper
    config.optimizer.clip_norm = 1.0  # not stated in the paper
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.first_moment_dtype = "float32"  # bfloat16 saves a sixth of the state
    config.optimizer.memory = "device"  # pinned_host: moments wait in the host's memory, an update streams them

    config.rewards = ConfigDict()
    config.rewards.enabled = ("digit", "mcq", "math", "iou", "open_ended")
    # Needed for open-ended records: package.module:Class, or a judge: process:DIR, outcome:DIR, rubric:MODEL.
    config.rewards.scorer = ""
    config.rewards.scorer_beta = 0.0  # steepness of the reward; 0: a class's own, a judge's is set by its scores
    config.rewards.scorer_memory = "pinned_host"  # between uses a judge's weights wait there, or on the device
    config.rewards.base_url = ""  # of the endpoint of a rubric judge, as http://localhost:8000/v1
    config.rewards.key_variable = ""  # environment variable with its key; empty where it asks for none
    config.rewards.process = ""  # process:DIR: the scores of steps are rewards too. Not in the paper
    config.rewards.process_weight = 1.0  # of their advantages, beside those of whole completions
    config.rewards.strict = False  # also demand one think block before the answer and nothing else
    config.rewards.math_workers = 2
    config.rewards.shuffled = False  # a control: completions of a step change places in what they are rewarded for

    config.evaluation = ConfigDict()
    config.evaluation.every = 10  # steps
    config.evaluation.records = 512  # of the evaluation split, inside the loop; the whole of it before and after
    config.evaluation.samples = 4  # at the training temperature, before and after
    config.evaluation.batch = 64

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 5  # steps
    config.checkpoint.keep = 2  # newest; the best stays too

    config.log = ConfigDict()
    config.log.samples = 4  # completions shown in TensorBoard a step
    return config


def _demo(config: ConfigDict) -> None:
    """The same code on a small policy and digit scenes; `launch/tpu_train.py` fills in checkpoint and shards."""
    config.steps = 80
    config.model.checkpoint = "demo"
    config.model.dtype = "float32"
    config.model.remat = "layer"
    config.data.train = "demo:rl"
    config.data.evaluation = "demo:heldout"
    config.data.max_pixels = 0
    config.rollout.prompts = 32
    config.rollout.batch = 32
    config.rollout.group_size = 8
    config.rollout.temperature = 1.0
    config.rollout.new_tokens = 192
    config.rollout.longest_prompt = 256
    config.rollout.most_windows = 32
    config.updates.completions = 256
    config.updates.micro_batch = 8
    # Fewer programs than by default: a small model trains as long as it compiles.
    config.rollout.most_buckets = 1
    config.rollout.row_ratio = 4
    config.updates.row_buckets = (640, 1088, 1792)
    # Adam makes full steps of pure noise too: without this pull the style of answering drifts under shuffled rewards.
    config.objective.kl_coefficient = 0.05
    config.objective.kl_target = 0.0
    config.objective.kl_horizon = 5 * 256
    config.optimizer.learning_rate = 3e-5
    config.optimizer.floor = 3e-6
    config.rewards.scorer = "data_prep.digit_scenes.facts:FactScorer"
    config.evaluation.every = 10
    config.evaluation.records = 260
    config.evaluation.samples = 1
    config.evaluation.batch = 130
    config.checkpoint.every = 20


def _vary(config: ConfigDict, variant: str) -> None:
    """Table 6's learning-rate and KL variants, and Table 5's rule-based row."""
    if variant == "basic":
        config.optimizer.floor = 0.0
        config.objective.kl_placement = "none"
    elif variant == "lr1":
        config.optimizer.floor, config.optimizer.warmup_share = 8e-7, 0.10
        config.objective.kl_placement = "none"
    elif variant == "lr2":
        config.optimizer.floor, config.optimizer.warmup_share = 5e-7, 0.03
        config.objective.kl_placement = "none"
    elif variant == "kl1":
        config.objective.kl_coefficient, config.objective.kl_target = 1e-2, 5e-3
    elif variant == "rules":
        config.rewards.enabled = ("digit", "mcq", "math", "iou")
        config.steps = 39  # one pass over 20,195 prompts
