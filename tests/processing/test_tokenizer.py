"""Both kinds of vocabulary: tokenizer.json through tokenizers, tokenizer.model through sentencepiece."""

import concurrent.futures
import io
import json
import shutil
import subprocess
import sys

import hypothesis
import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.processing.conversation import load_prompt
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.images import ImageProcessor
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.tokenizer import Tokenizer
from vlaa_jax.processing.vision_plan import WindowGeometry

pytestmark = pytest.mark.quick

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(checkpoint, tmp_path / "folder")


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return transformers.AutoTokenizer.from_pretrained(checkpoint)


def change(path, **fields):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


@hypothesis.given(st.lists(texts | st.sampled_from(["<|im_end|>", "<|image_pad|>", "<think>"])).map("".join))
@hypothesis.settings(deadline=None, max_examples=50)
def test_ids_and_text_are_those_of_transformers(theirs, tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    kept = [token for token in ids if token not in tokenizer.end_tokens]
    assert tokenizer.decode(kept) == theirs.decode(kept, clean_up_tokenization_spaces=False)


def test_special_tokens_in_text_are_ids_and_digits_are_single(tokenizer):
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    ids = [tokenizer.encode(name) for name in names]
    first = len(tokenizer) - 14
    assert ids == [[first], [first + 1], [first + 2], [first + 9], [first + 10], [first + 12]]
    assert tokenizer.encode("a<|im_end|>b") == [*tokenizer.encode("a"), first + 2, *tokenizer.encode("b")]
    assert len(tokenizer.encode("1234")) == 4


def test_decode_stops_at_the_first_end_token_and_hides_nothing_before(folder, tokenizer):
    change(folder / "generation_config.json", eos_token_id=tokenizer.encode("<|endoftext|><|im_end|>"))
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode("<think>\n3\n</think>\n<answer>3</answer>")
    assert tokenizer.decode(ids) == "<think>\n3\n</think>\n<answer>3</answer>"
    for end in ("<|im_end|>", "<|endoftext|>"):
        assert tokenizer.decode([*ids, *tokenizer.encode(f"{end}more<|im_end|>")]) == tokenizer.decode(ids)
        assert tokenizer.decode(tokenizer.encode(f"{end}3")) == ""
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(tokenizer.encode("3<|vision_start|>4")) == "3<|vision_start|>4"


def test_odd_bytes_and_ids_beyond_the_vocabulary_decode(tokenizer):
    byte = {name: tokenizer.encode(name)[0] for name in "aé"}
    assert tokenizer.decode([byte["a"], byte["é"], byte["a"]]) == "a\ufffda"  # half a letter
    assert tokenizer.decode([byte["a"], len(tokenizer), len(tokenizer) + 43, byte["a"]]) == "aa"


@hypothesis.given(st.lists(st.integers(0, 700), max_size=30))
@hypothesis.settings(deadline=None, max_examples=50)
def test_any_ids_decode(tokenizer, ids):
    assert isinstance(tokenizer.decode(ids), str)


def test_end_tokens_come_from_the_first_file_that_names_them(folder, checkpoint):
    own = Tokenizer(checkpoint).encode("<|im_end|>")[0]
    assert Tokenizer(folder).end_tokens == (own,)
    change(folder / "config.json", eos_token_id=own - 2)
    assert Tokenizer(folder).end_tokens == (own - 2,)
    change(folder / "generation_config.json", do_sample=True)
    assert Tokenizer(folder).end_tokens == (own - 2,)
    # The one that the chat template writes comes first.
    change(folder / "generation_config.json", eos_token_id=[own - 2, own])
    assert Tokenizer(folder).end_tokens == (own, own - 2)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match=r"generation_config\.json is not JSON"):
        Tokenizer(folder)


def test_bad_folders_are_named(folder, tmp_path):
    with pytest.raises(InputError, match="nowhere: no tokenizer could be loaded"):
        Tokenizer(tmp_path / "nowhere")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="folder: the tokenizer has no chat template"):
        Tokenizer(folder)
    content = (folder / "tokenizer.json").read_text()
    for damaged in (content[:1000], content.replace('"BPE"', '"BPX"'), ""):
        (folder / "tokenizer.json").write_text(damaged)
        with pytest.raises(InputError, match="folder: no tokenizer could be loaded"):
            Tokenizer(folder)


def test_no_end_token_is_refused(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(InputError, match="folder: no end token"):
        Tokenizer(folder)


def test_a_stored_limit_of_length_cuts_nothing(folder, tokenizer):
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    cut = {"max_length": 5, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    change(folder / "tokenizer.json", truncation=cut, padding=padding | {"pad_to_multiple_of": None})
    change(folder / "tokenizer_config.json", model_max_length=5)
    limited = Tokenizer(folder)
    text = "<|vision_start|>" + "<|image_pad|>" * 50 + "<|vision_end|>"
    assert limited.encode(text) == tokenizer.encode(text)
    assert len(limited.encode(text)) == 52 and len(limited.encode("a")) == 1


def test_no_token_is_added_to_a_text(folder, tokenizer):
    """Many checkpoints put a first token before every text; here the chat template alone decides."""
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = ("<|im_start|>", tokenizer.encode("<|im_start|>")[0])
    model.post_processor = tokenizers.processors.TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    model.save(str(folder / "tokenizer.json"))
    assert model.encode("3").ids == [first[1], *tokenizer.encode("3")]
    assert Tokenizer(folder).encode("3") == tokenizer.encode("3")


def test_sha256_names_what_ids_depend_on(folder, tokenizer):
    assert Tokenizer(folder).sha256 == tokenizer.sha256
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert Tokenizer(folder).sha256 == tokenizer.sha256
    assert Tokenizer(folder).chat_template == "{{ messages[0].content }}"
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer(folder).sha256 != tokenizer.sha256


def test_chat_is_that_of_transformers(theirs, tokenizer):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "größer?"}]}]
    text = tokenizer.chat(messages)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|vision_end|>größer?<|im_end|>\n<|im_start|>assistant\n")


def test_threads_share_a_tokenizer(tokenizer):
    asked = [f"Step {number}: {'<|image_pad|>' * (number % 5)} top left" for number in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, asked)) == [tokenizer.encode(text) for text in asked]


# sentencepiece

WORDS = "How many 3s are there? Step 1: 7 top left Answer with a single integer. größer\n".split(" ")
SPECIAL = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|image_pad|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def trained():
    """Bytes of a model with byte fallback and two control pieces, trained here."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS[at:] + WORDS[:at]) for at in range(len(WORDS))] * 4),
        model_writer=writer,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        control_symbols=SPECIAL,
        minloglevel=2,
    )
    return writer.getvalue()


@pytest.fixture(scope="module")
def pieces(trained, tmp_path_factory):
    """As InternLM lays it out: the image token is no piece but added behind the vocabulary."""
    directory = tmp_path_factory.mktemp("pieces")
    (directory / "tokenizer.model").write_bytes(trained)
    config = {
        "bos_token": "<s>",
        "add_bos_token": True,
        "pad_token": None,
        "chat_template": TEMPLATE,
        "added_tokens_decoder": {"345": {"content": "<|image_pad|>", "special": True}},
        "tokenizer_class": "InternLMXComposer2Tokenizer",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    change(directory / "special_tokens_map.json", eos_token={"content": "<|im_end|>", "lstrip": False})
    return directory


@pytest.fixture
def pieces_folder(pieces, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(pieces, tmp_path / "pieces")


def test_sentencepiece_ids_are_the_models_own(trained, pieces_folder):
    tokenizer = Tokenizer(pieces_folder)
    model = sentencepiece.SentencePieceProcessor(model_proto=trained)
    assert len(tokenizer) == 346 and model.get_piece_size() == 340
    for text in ("How many 3s?", " two  spaces\n\ttab", "größer 数字 \U0001f600", ""):
        assert tokenizer.encode(text) == model.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    start, end = (model.piece_to_id(name) for name in SPECIAL)
    assert tokenizer.encode("<|im_start|>user\nHow<|image_pad|><|im_end|>") == [
        *[start, *model.encode("user\nHow"), 345, end]
    ]
    assert tokenizer.encode("<s>a</s>") == [model.bos_id(), *model.encode("a"), model.eos_id()]


def test_sentencepiece_chat_and_end_tokens(trained, pieces_folder):
    model = sentencepiece.SentencePieceProcessor(model_proto=trained)
    tokenizer = Tokenizer(pieces_folder)
    end = model.piece_to_id("<|im_end|>")
    assert tokenizer.end_tokens == (end,)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "image"}]}]
    expected = "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<|image_pad|><|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.chat(messages) == expected
    change(pieces_folder / "generation_config.json", eos_token_id=[model.eos_id(), end])
    assert Tokenizer(pieces_folder).end_tokens == (end, model.eos_id())
    (pieces_folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert Tokenizer(pieces_folder).chat(messages) == "S"
    change(pieces_folder / "tokenizer_config.json", eos_token="<|nothing|>")
    with pytest.raises(InputError, match=r"tokenizer_config.json: eos_token '<\|nothing\|>' is no token"):
        Tokenizer(pieces_folder)


def test_sentencepiece_decodes_anything(pieces_folder):
    tokenizer = Tokenizer(pieces_folder)
    ids = tokenizer.encode("größer<|image_pad|>\U0001f600")
    assert tokenizer.decode(ids) == "größer<|image_pad|>\U0001f600"
    assert tokenizer.decode([*ids, *tokenizer.encode("<|im_end|>more")]) == "größer<|image_pad|>\U0001f600"
    assert tokenizer.decode([343, 10**6]) == ""
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("\U0001f600")[:-1])


@hypothesis.given(ids=st.lists(st.integers(0, 400), max_size=20), text=texts)
@hypothesis.settings(deadline=None, max_examples=50)
def test_sentencepiece_round_trip(pieces, ids, text):
    tokenizer = Tokenizer(pieces)
    assert isinstance(tokenizer.decode(ids), str)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_folder_variants(trained, pieces_folder):
    own = Tokenizer(pieces_folder).sha256
    change(pieces_folder / "added_tokens.json", **{"<|box|>": 350})
    changed = Tokenizer(pieces_folder)
    assert changed.encode("<|box|>") == [350] and len(changed) == 351 and changed.sha256 != own
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (pieces_folder / name).unlink()
    with pytest.raises(InputError, match="pieces: the tokenizer has no chat template"):
        Tokenizer(pieces_folder)
    (pieces_folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    model = sentencepiece.SentencePieceProcessor(model_proto=trained)
    assert Tokenizer(pieces_folder).end_tokens == (model.eos_id(),)
    (pieces_folder / "tokenizer.model").write_bytes(trained[: len(trained) // 2])
    with pytest.raises(InputError, match=r"tokenizer\.model is no sentencepiece model"):
        Tokenizer(pieces_folder)


def test_tokenizer_json_goes_before_tokenizer_model(folder, tokenizer, trained):
    (folder / "tokenizer.model").write_bytes(trained)
    assert Tokenizer(folder).sha256 == tokenizer.sha256


def test_sentencepiece_serves_the_encoder(pieces_folder, checkpoint, png):
    tokenizer = Tokenizer(pieces_folder)
    encoder = Encoder(tokenizer, ImageProcessor(checkpoint), load_prompt(), WindowGeometry(2, 2), image_token=345)
    encoded = encoder.encode(Record("r", (png(84, 56),), "How many 3s?", "2", "digit"))
    assert (encoded.tokens == 345).sum() == 6
    assert tokenizer.decode(encoded.tokens[encoded.tokens != tokenizer.end_tokens[0]]).endswith(
        "<|image_pad|>" * 6 + "How many 3s?\nAnswer with a single integer.\n<|im_start|>assistant\n"
    )
    assert encoder.completion("3")[-1] == tokenizer.end_tokens[0]


def test_nothing_needs_torch(checkpoint, pieces_folder, png, tmp_path):
    (tmp_path / "a.png").write_bytes(png(84, 56))
    script = """
import pathlib, sys
for name in ("torch", "torchvision", "tensorflow"):
    sys.modules[name] = None
from vlaa_jax.processing import batches, index
from vlaa_jax.processing.conversation import load_prompt
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.images import ImageProcessor
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.tokenizer import Tokenizer
from vlaa_jax.processing.vision_plan import WindowGeometry
record = Record("r", (pathlib.Path(sys.argv[3]).read_bytes(),), "?", "2", "digit")
for folder in sys.argv[1:3]:
    tokenizer = Tokenizer(folder)
    (token,) = tokenizer.encode("<|image_pad|>")
    encoder = Encoder(tokenizer, ImageProcessor(sys.argv[1]), load_prompt(), WindowGeometry(2, 2), image_token=token)
    print((encoder.encode(record).tokens == token).sum())
"""
    command = [sys.executable, "-c", script, str(checkpoint), str(pieces_folder), str(tmp_path / "a.png")]
    assert subprocess.check_output(command, text=True).split() == ["6", "6"]
