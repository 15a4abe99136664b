"""FLOPs that the model itself asks for: products of its weights and of the attention pairs that a mask lets through.

What a program computes beyond them (layers again in the backward pass, blocks of a kernel that are half masked,
padding of a chunk) is no credit to it, so a share of peak counts these alone. Everything is of all chips together, at
the full size of the arrays: padding inside a row counts, since the run decides it and not the program.
"""

from ml_collections import ConfigDict

from vlaa_jax.evaluation.judges.spec import LIKELIHOOD
from vlaa_jax.models.qwen2_5_vl import ModelConfig
from vlaa_jax.models.qwen2_5_vl.config import QWEN2, TextConfig, VisionConfig
from vlaa_jax.planning.judge_programs import PlannedJudge
from vlaa_jax.rollout.schedule import SEGMENT, prompts_at_once, steps_of_segment
from vlaa_jax.training.batch_sizes import longest_prompt, most_windows

_BACKWARD = 2  # products with the weights' and with the activations' gradient, for each forward one


def grpo_flops(config: ConfigDict, sizes: ModelConfig, shards: int) -> dict[str, float]:
    """Of each program of a GRPO step at its largest sizes, by name.

    Args:
      config: the run's.
      sizes: of the policy.
      shards: parts of the mesh that rows are dealt to.
    """
    rollout, section = config.rollout, config.updates
    prompt, windows = longest_prompt(config), most_windows(config)
    new, group = rollout.new_tokens, rollout.group_size
    text, batch = sizes.text, min(rollout.batch, rollout.prompts)
    image = vision_flops(sizes.vision, windows)
    prefill = text_flops(text, prompt, causal_pairs(prompt)) + head_flops(text, 1)
    # Token c of a completion sees the prompt and c + 1 of its own; the last one drawn is never run, and the first is
    # drawn from the prompt.
    run = new - 1
    decode = group * (text_flops(text, run, run * prompt + causal_pairs(run)) + head_flops(text, run))
    segments = -(-run // steps_of_segment(SEGMENT, new))
    at_once = shards * prompts_at_once(batch // shards, prompt)
    in_row = section.row_completions or group
    row = text_flops(
        text,
        prompt + in_row * new,
        causal_pairs(prompt) + in_row * (new * prompt + causal_pairs(new)),
    ) + head_flops(text, in_row * new)
    rows = section.micro_batch * (group // in_row)
    trained = 0 if config.model.freeze_vision else image
    return {
        "vision": batch * image,
        "prefill": at_once * prefill,
        "decode": batch * decode / max(1, segments),
        "log_probabilities": rows * (row + trained),
        "update": rows * (row + trained) * (1 + _BACKWARD),
    }


def sft_flops(config: ConfigDict, sizes: ModelConfig) -> dict[str, float]:
    """Of the step of packed rows; a row counts as one example, since packing is the run's affair."""
    section = config.updates
    row = text_flops(sizes.text, section.row_tokens, causal_pairs(section.row_tokens))
    row += head_flops(sizes.text, section.row_targets)
    row *= 1 + _BACKWARD
    image = vision_flops(sizes.vision, section.row_windows)
    return {"update": section.rows * (row + image * (1 if config.model.freeze_vision else 1 + _BACKWARD))}


def prm_flops(config: ConfigDict, sizes: ModelConfig) -> dict[str, float]:
    """Of the step of a reward model, and of scoring: rows that are full of solutions of equal length.

    The longest prompt stands in them; one logit a step is nothing beside the rest.
    """
    section = config.updates
    prompt, solutions = section.longest_prompt, section.row_solutions
    own = (section.longest_row - prompt) / solutions
    pairs = causal_pairs(prompt) + solutions * (own * prompt + causal_pairs(own))
    row = text_flops(sizes.text, section.longest_row, pairs)
    image = vision_flops(sizes.vision, section.most_windows)
    trained = 1 if config.model.freeze_vision else 1 + _BACKWARD
    return {
        "update": section.rows * (row * (1 + _BACKWARD) + image * trained),
        "score": section.rows * (row + image),
    }


def judge_flops(config: ConfigDict, judge: PlannedJudge) -> float:
    """Of a judge's largest batch: rows of the longest prompt and as many of the longest completions as have room."""
    prompt, new, text = longest_prompt(config), config.rollout.new_tokens, judge.sizes.text
    solutions = min(config.rollout.group_size, (judge.shape.length - prompt) // new)
    pairs = causal_pairs(prompt) + solutions * (new * prompt + causal_pairs(new))
    row = text_flops(text, prompt + solutions * new, pairs) + vision_flops(judge.sizes.vision, judge.shape.windows)
    if judge.kind == LIKELIHOOD:
        row += head_flops(text, solutions * new)
    return judge.rows * row


def search_flops(config: ConfigDict, sizes: ModelConfig, prompt: int, windows: int, shards: int) -> dict[str, float]:
    """Of each program of a tree search at its largest sizes.

    Args:
      config: of the search.
      sizes: of the policy.
      prompt, windows: tokens and windows of a question.
      shards: parts of the mesh that rows are dealt to.
    """
    questions, new, group = config.rollout.questions, config.rollout.new_tokens, config.search.rollouts
    process, starts = max(config.rollout.process_buckets), config.search.leaves
    text, run = sizes.text, new - 1
    behind = text_flops(text, process, process * prompt + causal_pairs(process)) + head_flops(text, 1)
    pairs = run * (prompt + process) + causal_pairs(run)
    decode = group * (text_flops(text, run, pairs) + head_flops(text, run))
    segments = max(1, -(-run // steps_of_segment(SEGMENT, new)))
    return {
        "vision": questions * vision_flops(sizes.vision, windows),
        "keep": questions * text_flops(text, prompt, causal_pairs(prompt)),
        "prefill": shards * prompts_at_once(questions * starts // shards, prompt + process) * behind,
        "decode": questions * starts * decode / segments,
    }


def text_flops(text: TextConfig, tokens: float, pairs: float) -> float:
    """One forward pass of the layers over some tokens.

    Args:
      text: sizes.
      tokens: that run.
      pairs: of a query and a key that it sees, of one head.
    """
    heads = (2 * text.query_heads + 2 * text.key_value_heads) * text.head_width  # query, output; key, value
    weights = text.layers * text.width * (heads + 3 * text.mlp_width)
    return 2 * weights * tokens + text.layers * _attention(text.query_heads, text.head_width, pairs)


def head_flops(text: TextConfig, tokens: float) -> float:
    """Logits of some tokens."""
    return 2 * text.width * text.vocabulary * tokens


def vision_flops(vision: VisionConfig, windows: int) -> float:
    """One forward pass of the tower over the windows of a row; a full layer counts as if they were one image."""
    patches = windows * vision.window_slots
    mlp = 2 if vision.model_type == QWEN2 else 3  # matrices; the third is the gate's
    block = vision.width * (4 * vision.width + mlp * vision.mlp_width)
    full = len(vision.full_attention_layers)
    pairs = full * patches**2 + (vision.depth - full) * windows * vision.window_slots**2
    merged = vision.width * vision.merge**2
    merger = merged * (merged + vision.output_width) / vision.merge**2
    weights = vision.depth * block + vision.patch_values * vision.width + merger
    return 2 * weights * patches + _attention(vision.heads, vision.head_width, pairs)


def causal_pairs(tokens: float) -> float:
    """A token sees itself and all before it."""
    return tokens * (tokens + 1) / 2


def _attention(heads: int, width: int, pairs: float) -> float:
    """Scores and mixing."""
    return 2 * 2 * heads * width * pairs
