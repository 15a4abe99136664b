"""Our own policy as a model in this process: any Hugging Face directory of its architecture, no server and no price."""

import dataclasses
import hashlib
import itertools
import pathlib
import threading
from collections.abc import Sequence
from typing import Self

import numpy as np

from data_prep.answers.cache import cache_key
from data_prep.answers.model import Answer, Arrived, Request, Unanswered, ignore
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import ModelConfig, hf
from vlaa_jax.models.qwen2_5_vl.config import read_config
from vlaa_jax.processing.conversation import INSTRUCTIONS, OWN_SYSTEM, Prompt
from vlaa_jax.processing.encode import EncodedPrompt, Encoder
from vlaa_jax.processing.images import ImageProcessor
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.tokenizer import Tokenizer
from vlaa_jax.processing.vision_plan import WindowGeometry
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.random_bits import EVALUATION
from vlaa_jax.rollout.sampler import SamplingWeights, sampling_weights

# Shapes double, so that whatever comes few programs are compiled and less than half of a batch is padding.
_PROMPTS = tuple(64 * 2**k for k in range(11))
_WINDOWS = tuple(4 * 2**k for k in range(11))
_FEWEST_ROWS = 8  # fewer cost as much


class Policy:
    """A `Model` over the jitted sampler.

    A request without a system message is asked with the one that the policy was trained with, where its directory has
    it, else as its chat template has it. Samples depend on the request alone, never on what else is in the batch.
    """

    def __init__(self, directory: str, *, batch: int):
        """Reads the files once, to know them again in the cache; weights are loaded with the first request.

        Args:
          directory: of Hugging Face, or `gs://bucket/folder`.
          batch: rows that are sampled at once.

        Raises:
          InputError: no such directory.
        """
        self._directory = hf.local_folder(directory)
        if not self._directory.is_dir():
            raise InputError(f"{directory} does not exist: expected a Hugging Face directory")
        self.name = f"policy:{self._digest()}"
        self._batch = batch
        self._loaded: _Loaded | None = None
        self._lock = threading.Lock()

    def answer(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Answer | Unanswered]:
        """See `Model.answer`."""
        results: dict[int, Answer | Unanswered] = {}

        def keep(place: int, result: Answer | Unanswered) -> None:
            results[place] = result
            arrived(place, result)

        with self._lock:  # one batch fills the device
            self._loaded = self._loaded or _Loaded.read(self._directory)
            prompts: dict[int, EncodedPrompt] = {}
            for place, request in enumerate(requests):
                try:
                    prompts[place] = self._encode(self._loaded, request)
                except (InputError, UnicodeEncodeError) as error:
                    keep(place, Unanswered(f"not asked: {error}"))
            for chosen in self._batches(requests, prompts):
                self._sample(self._loaded, requests, prompts, chosen, keep)
        return [results[place] for place in range(len(requests))]

    def _batches(self, requests: Sequence[Request], prompts: dict[int, EncodedPrompt]) -> list[tuple[int, ...]]:
        """Places of requests that are sampled together: of the same bounds, and of like length."""

        def kind(place: int) -> tuple[int, float]:
            return requests[place].max_tokens, requests[place].temperature

        places = sorted(prompts, key=lambda place: (kind(place), len(prompts[place].tokens), place))
        groups = (list(group) for _, group in itertools.groupby(places, kind))
        return [tuple(group[at : at + self._batch]) for group in groups for at in range(0, len(group), self._batch)]

    def _sample(
        self,
        loaded: "_Loaded",
        requests: Sequence[Request],
        prompts: dict[int, EncodedPrompt],
        chosen: tuple[int, ...],
        arrived: Arrived,
    ) -> None:
        first = requests[chosen[0]]
        generator = Generator(
            sampling=dataclasses.replace(loaded.sampling, temperature=first.temperature),
            group=1,
            new_tokens=first.max_tokens,
            prompt_buckets=_PROMPTS,
            window_buckets=_WINDOWS,
            seed=0,
            stream=EVALUATION,
        )
        rows = max(1 << (len(chosen) - 1).bit_length(), _FEWEST_ROWS)
        padded = [*chosen, *[chosen[-1]] * (rows - len(chosen))]  # the last one stands in for rows that are missing
        out = generator(
            loaded.weights,
            [prompts[place] for place in padded],
            [int(cache_key(self.name, requests[place])[:15], 16) for place in padded],
        ).completions
        tokens, lengths, ended = (np.asarray(leaf)[:, 0] for leaf in (out.tokens, out.lengths, out.ended))
        for row, place in enumerate(chosen):
            length = int(lengths[row])
            text = loaded.tokenizer.decode(tokens[row, :length].tolist())
            arrived(
                place,
                Answer(text, len(prompts[place].tokens), length, truncated=not bool(ended[row]), model=self.name),
            )

    def _encode(self, loaded: "_Loaded", request: Request) -> EncodedPrompt:
        request.prompt.encode()  # half a surrogate pair would fail inside the tokenizer
        images = () if request.image is None else (request.image,)
        encoder = loaded.encoder(request.system or loaded.system)
        encoded = encoder.encode(Record("of a request", images, request.prompt, "", "open_ended"))
        if len(encoded.tokens) > _PROMPTS[-1] or len(encoded.vision.frames) > _WINDOWS[-1]:
            raise InputError(f"the prompt has {len(encoded.tokens)} tokens, at most {_PROMPTS[-1]} are sampled from")
        return encoded

    def _digest(self) -> str:
        """Of all files: the same policy elsewhere has the same answers, another one in its place has others."""
        digest = hashlib.sha256()
        for path in sorted(path for path in self._directory.iterdir() if path.is_file()):
            with path.open("rb") as file:
                digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """What a directory holds.

    Attributes:
      system: the message that it was trained with; '' where it has none.
      sampling: at temperature 1.
    """

    sizes: ModelConfig
    tokenizer: Tokenizer
    images: ImageProcessor
    system: str
    sampling: Sampling
    weights: SamplingWeights

    @classmethod
    def read(cls, directory: pathlib.Path) -> Self:
        sizes, tokenizer, system = read_config(directory), Tokenizer(directory), directory / OWN_SYSTEM
        model = hf.load(directory, dtype=None)
        return cls(
            sizes,
            tokenizer,
            ImageProcessor(directory),
            system.read_text(encoding="utf-8").strip() if system.exists() else "",
            Sampling(end_tokens=tokenizer.end_tokens, banned_tokens=(sizes.image_token, sizes.video_token)),
            sampling_weights(model, model.language.embedding[...].dtype),
        )

    def encoder(self, system: str) -> Encoder:
        geometry = WindowGeometry(self.sizes.vision.merge, self.sizes.vision.window_units)
        return Encoder(
            self.tokenizer, self.images, _Turn(system, INSTRUCTIONS), geometry, image_token=self.sizes.image_token
        )


class _Turn(Prompt):
    """A conversation that may do without a system message."""

    def messages(self, record: Record) -> list[dict]:
        messages = super().messages(record)
        return messages if self.system else messages[1:]
