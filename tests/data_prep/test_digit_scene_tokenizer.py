"""The demo's tokenizer: Qwen's rules, ids and chat template in a small vocabulary, the same bytes each time."""

import dataclasses

import pytest
from transformers import AutoTokenizer

from data_prep.digit_scenes import builder
from data_prep.digit_scenes.tokenizer import SPECIAL_TOKENS, build_tokenizer
from vlaa_jax.errors import InputError
from vlaa_jax.processing.conversation import load_prompt

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer") / "made"
    build_tokenizer(directory, ["zyzzyva zyzzyva zyzzyva"], records=300)
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory):
    return AutoTokenizer.from_pretrained(directory)


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_two_builds_are_equal_bytes(directory, tmp_path):
    build_tokenizer(tmp_path, ["zyzzyva zyzzyva zyzzyva"], records=300)
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (directory / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_special_tokens_follow_the_vocabulary_in_qwens_order(tokenizer):
    first = tokenizer.vocab_size
    assert len(tokenizer) == first + 14 <= 640
    assert [ids(tokenizer, token) for token in SPECIAL_TOKENS] == [[first + k] for k in range(14)]
    # Qwen2.5 has them at 151643, 151644, 151645, 151652 and 151655.
    offsets = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<|vision_start|>": 9, "<|image_pad|>": 12}
    assert {token: SPECIAL_TOKENS.index(token) for token in offsets} == offsets
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)


def test_any_text_round_trips_and_digits_are_single(tokenizer):
    for text in (
        "größer 数字 \U0001f600 \x00\x7f",
        "<think>\nStep 1: west 7\n</think>",
        "  two  spaces\n\n\ttab ",
    ):
        assert tokenizer.decode(ids(tokenizer, text), clean_up_tokenization_spaces=False) == text
    # NFC: a letter with a combining accent becomes one letter.
    assert ids(tokenizer, "e\u0301") == ids(tokenizer, "\u00e9")
    digits = [ids(tokenizer, digit)[0] for digit in "0123456789"]
    assert len(set(digits)) == 10
    assert ids(tokenizer, "1234567890") == [*digits[1:], digits[0]]


def test_the_demos_words_are_single_tokens(tokenizer):
    assert all(len(ids(tokenizer, word)) == 1 for word in ("Step", " northwest", " centre", " south", " In", " there"))
    assert len(ids(tokenizer, " zyzzyva")) == 1  # from the extra text
    assert len(ids(tokenizer, "Step 1: northwest 7\n")) == 8
    split = dataclasses.replace(builder.SPLITS["harder"], records=24)
    for record in builder.draw_split("harder", split, 1):
        assert "\ufffd" not in tokenizer.decode(ids(tokenizer, record.question))
        assert len(ids(tokenizer, record.question)) < len(record.question) / 1.5


def test_chat_template_renders_as_qwens_does(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which\nis larger?"}],
        },
    ]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>"
        "Which\nis larger?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    messages.append({"role": "assistant", "content": [{"type": "text", "text": "The first."}]})
    messages.append({"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "video"}]})
    conversation = tokenizer.apply_chat_template(messages, tokenize=False)
    assert conversation == prompt + (
        "The first.<|im_end|>\n<|im_start|>user\nAnd <|vision_start|><|video_pad|><|vision_end|><|im_end|>\n"
    )
    # Without a system message Qwen2.5-VL's template supplies its own.
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_the_record_of_a_scene_becomes_a_prompt(tokenizer):
    split = dataclasses.replace(builder.SPLITS["rl"], records=1, kinds={"compare_sums": 1})
    (record,) = builder.draw_split("rl", split, 0)
    prompt = load_prompt()
    text = tokenizer.apply_chat_template(prompt.messages(record), tokenize=False, add_generation_prompt=True)
    assert text.startswith(f"<|im_start|>system\n{prompt.system}<|im_end|>\n<|im_start|>user\n<|vision_start|>")
    tokens = ids(tokenizer, text)
    assert tokens.count(tokenizer.convert_tokens_to_ids("<|image_pad|>")) == 2
    assert tokenizer.decode(tokens, clean_up_tokenization_spaces=False) == text


def test_too_small_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected at least 270"):
        build_tokenizer(tmp_path, vocabulary=269)
