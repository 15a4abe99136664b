"""Reward models on the values of steps: ViLPRM (ViLBench, arXiv 2503.20271) and its like.

The paper states the base model, Qwen2.5-VL-3B, that a step's score lies in (0, 1), and that scores are averaged. Head,
loss, learning rate, epochs, batch, frozen parts, resolution and the mark that ends a step are not stated: they are our
choice, and each field below says so.

--config=configs/prm.py             the demo: a process model on what `data_prep search` found with the start policy
--config=configs/prm.py:outcome     the demo, an outcome model: whole solutions of the same records
--config=configs/prm.py:3b          ViLPRM on ViLReward-73K; also 7b
"""

from ml_collections import ConfigDict

from vlaa_jax.errors import InputError

_PRESETS = ("demo", "outcome", "3b", "7b")


def get_config(arg: str = "demo") -> ConfigDict:
    """The config of a preset."""
    arg = arg or "demo"
    if arg not in _PRESETS:
        raise InputError(f"preset {arg!r} does not exist: expected one of {', '.join(_PRESETS)}")
    config = _recipe()
    if arg in ("demo", "outcome"):
        _demo(config)
    if arg == "outcome":
        config.model.kind = "outcome"
    return config.lock()


def _recipe() -> ConfigDict:
    """ViLPRM; what the paper does not state says so."""
    config = ConfigDict()
    config.task = "prm"
    config.seed = 0  # of the order, and of a new head
    config.epochs = 2  # not stated in the paper
    config.steps = 0  # updates; 0: as many as the epochs need. 16,926 questions make 265 an epoch

    config.model = ConfigDict()
    # Hugging Face directory: a policy, which gets a new head, or a reward model, which goes on from its own.
    config.model.checkpoint = ""
    # process: the last token of every step has a score; outcome: that of the solution. The head, one linear layer and a
    # sigmoid, is not stated in the paper, nor is the mark: a step ends with its line end, no token is added.
    config.model.kind = "process"
    config.model.dtype = "bfloat16"  # compute; master weights are float32. Not stated in the paper
    config.model.freeze_vision = True  # not stated in the paper
    config.model.remat = "attention"  # what is kept for the backward pass: layer, attention, products or none

    config.mesh = ConfigDict()  # chips
    config.mesh.slices = 1  # of a pod, joined by the data-centre network
    config.mesh.fsdp = -1  # of a slice, over which rows and training weights are split; -1: all that are left
    config.mesh.tensor = 1

    config.data = ConfigDict()
    config.data.train = ""  # process shards as DIRECTORY:SPLIT
    config.data.evaluation = ""  # process shards; may stay empty
    config.data.min_pixels = 0  # 0: the checkpoint's
    config.data.max_pixels = 1280 * 28 * 28  # not stated in the paper
    config.data.skip_bad = False  # go on without records that cannot be used
    config.data.shuffled = False  # a control: the values of a question change places among its processes

    config.prompt = ConfigDict()
    config.prompt.system = ""  # file with the system message; '' is ours
    # Sentence after a question of each verifier; a judge is shown none, whatever stands here.
    config.prompt.instructions = ConfigDict({"digit": "", "mcq": "", "math": "", "iou": "", "open_ended": ""})

    config.updates = ConfigDict()
    config.updates.questions = 64  # with all their solutions; not stated in the paper
    config.updates.rows = 16  # of a micro-batch: a question each, or a part of its solutions
    config.updates.row_solutions = 16
    config.updates.longest_row = 4096  # tokens; a question with more solutions than that is spread over several rows
    config.updates.longest_prompt = 2048  # tokens; records with more than these bounds cannot be used
    config.updates.longest_solution = 1024  # tokens
    config.updates.most_steps = 32
    config.updates.most_windows = 100  # of a prompt's images
    config.updates.row_buckets = ()  # tokens; empty: chosen from the data
    config.updates.window_buckets = ()
    config.updates.most_buckets = 2  # of each, where they are chosen: programs are compiled for every pair

    config.objective = ConfigDict()
    config.objective.loss = "mse"  # or cross_entropy, pairwise; not stated in the paper
    # Of two steps of a question that `pairwise` compares. A third party's choice: the paper says "preference data".
    config.objective.pair_gap = 0.25

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

    config.evaluation = ConfigDict()
    config.evaluation.every = 50  # steps
    config.evaluation.questions = 512  # of the evaluation split, inside the loop; the whole of it before and after
    # package.module:Class that knows the first wrong step of a process record; '': values below one half stand for it.
    config.evaluation.truth = ""

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 50
    config.checkpoint.keep = 2
    return config


def _demo(config: ConfigDict) -> None:
    """Small policy, small pictures; the start is the policy that the search used."""
    config.steps = 800
    config.model.checkpoint = "demo"
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.data.max_pixels = 0
    config.updates.questions = 4
    config.updates.rows = 4
    config.updates.longest_row = 768
    config.updates.most_buckets = 1  # a small model trains as long as it compiles
    config.updates.longest_prompt = 256
    config.updates.longest_solution = 384
    config.updates.most_steps = 32
    config.updates.most_windows = 32
    config.objective.loss = "cross_entropy"
    config.optimizer.learning_rate = 4e-4
    config.optimizer.floor = 1e-5
    config.optimizer.weight_decay = 0.01
    config.optimizer.beta2 = 0.98
    config.evaluation.every = 100
    config.evaluation.questions = 80
    config.evaluation.truth = "data_prep.digit_scenes.process_truth:ProcessTruth"
    config.checkpoint.every = 100
