"""What is in the body of a chat completion; endpoints are not trusted to send one."""

from typing import Any

from data_prep.answers.model import Answer, Unanswered


def read_completion(body: Any) -> Answer | Unanswered:
    """The answer in a parsed body, without its cost.

    DeepSeek-R1 is served with its reasoning beside the content (`reasoning_content`; vLLM and OpenRouter call it
    `reasoning`). It goes before the content inside think tags, as the model writes it and as step 3 of VLAA-Thinking
    keeps it; content that begins with the tag already stays as it is.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return Unanswered(f"no message in the completion: {str(body)[:120]!r}")
    finish = choice.get("finish_reason")
    if finish == "content_filter":
        return Unanswered("blocked by the endpoint's content filter")
    content = _text(message.get("content"))
    reasoning = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    truncated = finish == "length"
    if not content.strip() and not (truncated and reasoning):
        refusal = _text(message.get("refusal"))
        return Unanswered("no text in the message" + (f": {refusal[:120]!r}" if refusal else ""))
    if reasoning and not content.lstrip().startswith("<think>"):
        content = f"<think>\n{reasoning.strip()}\n</think>\n\n{content}"
    prompt_tokens, completion_tokens = usage(body) or (0, 0)
    return Answer(content, prompt_tokens, completion_tokens, truncated=truncated, model=_text(body.get("model")))


def usage(body: Any) -> tuple[int, int] | None:
    """Tokens of prompt and completion; None where the body does not say."""
    section = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(section, dict):
        return None
    counts = section.get("prompt_tokens"), section.get("completion_tokens")
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        return None
    return counts


def _text(value: Any) -> str:
    """A text that can be written as UTF-8: JSON may hold halves of surrogate pairs."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
