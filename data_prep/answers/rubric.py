"""A rubric judge's prompts, answered by an endpoint or by a policy in this process."""

import io
from collections.abc import Callable, Sequence

import PIL.Image

from data_prep.answers.ledger import create_ledger
from data_prep.answers.model import Answer, Request
from data_prep.answers.open import Answerer, open_answerer
from data_prep.answers.section import POLICY
from data_prep.digit_scenes import demo
from vlaa_jax.evaluation.judges.rubric import Ask, RubricPrompt
from vlaa_jax.processing.images import decode
from vlaa_jax.storage import cache_folder

_GAP = 8  # white pixels between two pictures


def kept_answering(base_url: str, key_variable: str) -> Callable[[str], Ask]:
    """From the MODEL of a rubric judge to what answers it; replies are kept in the cache folder, which every run reads.

    MODEL is a name that the endpoint knows, or `policy:DIR`, where DIR may be `demo`.

    Args:
      base_url, key_variable: of the endpoint.
    """

    def open_model(model: str) -> Ask:
        if model.startswith(POLICY):
            model = f"{POLICY}{demo.checkpoint(model.removeprefix(POLICY))}"
        folder = cache_folder() / "judges"
        ledger = str(folder / "ledger.sqlite")
        return open_rubric(model, base_url=base_url, key_variable=key_variable, cache=str(folder), ledger=ledger)

    return open_model


def open_rubric(
    model: str,
    *,
    base_url: str = "",
    key_variable: str = "",
    max_tokens: int = 512,
    concurrency: int = 16,
    cache: str,
    ledger: str,
) -> Ask:
    """What answers a rubric judge, greedily; every reply is stored and never asked for again.

    Args:
      model, base_url, key_variable, max_tokens, concurrency: see `section.Section`.
      cache: folder of replies.
      ledger: file; made where there is none.

    Raises:
      InputError: as `open_answerer`.
    """
    create_ledger(ledger, 0.0)
    where = {"model": model, "base_url": base_url, "key_variable": key_variable}
    section = where | {"max_tokens": max_tokens, "temperature": 0.0, "concurrency": concurrency}
    return asking(open_answerer(section, cache=cache, ledger=ledger, stage="judge"))


def asking(answerer: Answerer) -> Ask:
    """The same with an answerer of one's own."""
    bounds = {"max_tokens": answerer.section.max_tokens, "temperature": answerer.section.temperature}

    def ask(prompts: Sequence[RubricPrompt]) -> list[str | None]:
        requests = [Request(each.text, one_picture(each.images), attempt=each.attempt, **bounds) for each in prompts]
        answers = answerer.answer(requests)
        return [answer.text if isinstance(answer, Answer) else None for answer in answers]

    return ask


def one_picture(images: Sequence[bytes]) -> bytes | None:
    """The picture of a request, which has one: several stand side by side on white, in their order.

    Raises:
      InputError: an image that cannot be decoded.
    """
    if len(images) < 2:
        return images[0] if images else None
    decoded = [decode(image) for image in images]
    width = sum(image.width for image in decoded) + _GAP * (len(decoded) - 1)
    whole = PIL.Image.new("RGB", (width, max(image.height for image in decoded)), "white")
    left = 0
    for image in decoded:
        whole.paste(image, (left, 0))
        left += image.width + _GAP
    out = io.BytesIO()
    whole.save(out, "PNG")
    return out.getvalue()
