"""The build of VLAA-Thinking (sections 2 and 3.1): sources, models of the four asking steps, curation, shards.

python -m data_prep build --config=configs/vlaa_thinking.py --out=DIR \
    --config.sources.arxivqa.folder=FOLDER ... --config.distil.base_url=URL

A source takes part when it has a folder. What the paper does not state says so. `build --help` says what workers on
several machines need.
"""

from ml_collections import ConfigDict

from data_prep.sources.published import PUBLISHED

_OPENAI = "https://api.openai.com/v1"
_DEEPSEEK = "https://api.deepseek.com/v1"


def get_config() -> ConfigDict:
    """The paper's recipe."""
    config = ConfigDict()
    config.seed = 0  # of every draw: limits, quotas, order of the records
    config.cache = ""  # folder of the answers (or gs://), which several builds may share; '' is the build's own
    config.budget = 0.0  # of all steps, in the currency of the prices; 0: none
    config.most_unanswered = (
        0.01  # share of a step's questions without an answer, after all retries, that it may end with
    )
    config.files = 16  # that the drafts of a step are spread over: as many workers can read them at once

    config.sources = ConfigDict()
    for name, source in PUBLISHED.items():
        # Step 1. `folder`: the same on every worker. `limit`: questions drawn; 0: all. Table 1 keeps more samples of
        # COCO and VisualGenome than it has originals, unexplained, and gives no number for GeoQA170K.
        limit = 0 if source.route == "as_is" else source.original or 0
        config.sources[name] = ConfigDict({"folder": "", "limit": limit})

    # Step 2. The text says GPT-4o; the released records name its versions 0806 (CLEVR-Math, GeoQA170K) and 1120
    # (ArxivQA).
    config.caption = _model("gpt-4o-2024-11-20", _OPENAI, max_tokens=2048, prices=(2.5, 10.0))
    # Step 3. A text-only reasoner that thinks inside <think>; no prompt format is asked of it. The temperature is the
    # one its authors recommend.
    config.distil = _model("deepseek-reasoner", _DEEPSEEK, max_tokens=16_384, prices=(0.55, 2.19))
    config.distil.key_variable = "DEEPSEEK_API_KEY"
    config.distil.temperature = 0.6
    # Step 4. GPT-3.5-turbo in section 2, GPT-4-Turbo under figure 10, GPT-4o in the repository: these disagree.
    # GPT-3.5-turbo writes 4,096 tokens at most: longer texts are set aside, another model keeps them.
    config.rewrite = _model("gpt-3.5-turbo", _OPENAI, max_tokens=4096, prices=(0.5, 1.5))
    config.rewrite.drift = 15  # words: a larger gap between the lengths before and after drops the sample
    # Step 5. Under figure 11.
    config.verify = _model("gpt-3.5-turbo", _OPENAI, max_tokens=8, prices=(0.5, 1.5))

    # Step 6.
    config.curation = ConfigDict()
    config.curation.aha = "whole"  # part of the distilled text that is searched: `whole` or `think`; not stated
    config.curation.disjoint_by = "id"  # SFT and RL share no `id`, or no `image`
    config.curation.quotas = ConfigDict()  # most records of a source (table 1), drawn after the split
    for name, source in PUBLISHED.items():
        config.curation.quotas[name] = ConfigDict({"sft": source.sft or 0, "rl": source.rl})

    config.shards = ConfigDict()
    config.shards.records_per_shard = 4096
    config.shards.max_image_bytes = 0  # of an encoded picture; larger ones become JPEG of lower quality; 0: never
    config.shards.name = "vlaa_thinking"
    config.shards.version = "1.0.0"
    return config.lock()


def _model(name: str, base_url: str, *, max_tokens: int, prices: tuple[float, float]) -> ConfigDict:
    """A model of a step. Token bounds and temperatures are not stated in the paper."""
    section = ConfigDict()
    section.model = name  # as the endpoint calls it, or policy:CHECKPOINT_DIR for our own policy in this process
    section.base_url = base_url  # of an OpenAI-compatible endpoint
    section.key_variable = "OPENAI_API_KEY"  # environment variable that holds the key; '' where none is asked for
    section.prompt = ""  # file; '' is ours
    section.max_tokens = max_tokens  # of an answer
    section.bound_parameter = "max_tokens"  # by which it is sent; OpenAI's reasoning models want max_completion_tokens
    section.temperature = 0.0
    section.concurrency = 16  # requests in flight, of one worker process
    section.requests_a_minute = 0  # 0: no limit
    section.tokens_a_minute = 0
    section.retries = 5
    section.timeout = 600.0  # seconds of one request
    section.price_prompt, section.price_completion = prices  # of a million tokens, US dollars in spring 2025
    return section
