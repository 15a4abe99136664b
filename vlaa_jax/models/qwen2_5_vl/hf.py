"""Hugging Face directories: load, and save so that a round trip changes no byte of any tensor.

One table maps our stacked weights to published names. Shards are read one after the other, so the host holds the model
and at most one shard.
"""

import collections
import dataclasses
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import nnx

from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl.config import ModelConfig, read_config
from vlaa_jax.models.qwen2_5_vl.model import Qwen2_5_VL

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One of our arrays. `axes` names its axes (after the layer axis), `published` those of the file's tensor.

    Letters in brackets are one axis of the file: `(NH)D` is a `[N * H, D]` matrix.
    """

    path: str
    name: str
    axes: str
    published: str

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the file's tensor, given the shape of ours without the layer axis."""
        sizes = dict(zip(self.axes, shape, strict=True))
        groups = re.findall(r"\((\w+)\)|(\w)", self.published)
        return tuple(int(np.prod([sizes[letter] for letter in a or b])) for a, b in groups)

    def from_file(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        sizes = dict(zip(self.axes, shape, strict=True))
        letters = self.published.replace("(", "").replace(")", "")
        return tensor.reshape([sizes[letter] for letter in letters]).transpose([letters.index(a) for a in self.axes])

    def to_file(self, array: np.ndarray) -> np.ndarray:
        letters = self.published.replace("(", "").replace(")", "")
        return array.transpose([self.axes.index(a) for a in letters]).reshape(self.file_shape(array.shape))


def _attention_bias(ours: str, theirs: str, head: str) -> _Entry:
    return _Entry(
        f"language.layers.{ours}_bias", f"model.layers.{{}}.self_attn.{theirs}.bias", f"{head}H", f"({head}H)"
    )


_TABLE = (
    _Entry("language.embedding", "model.embed_tokens.weight", "VD", "VD"),
    _Entry("language.untied_head", "lm_head.weight", "VD", "VD"),
    _Entry("language.norm", "model.norm.weight", "D", "D"),
    _Entry("language.layers.attention_norm", "model.layers.{}.input_layernorm.weight", "D", "D"),
    _Entry("language.layers.query", "model.layers.{}.self_attn.q_proj.weight", "DNH", "(NH)D"),
    _Entry("language.layers.key", "model.layers.{}.self_attn.k_proj.weight", "DKH", "(KH)D"),
    _Entry("language.layers.value", "model.layers.{}.self_attn.v_proj.weight", "DKH", "(KH)D"),
    _attention_bias("query", "q_proj", "N"),
    _attention_bias("key", "k_proj", "K"),
    _attention_bias("value", "v_proj", "K"),
    _Entry("language.layers.output", "model.layers.{}.self_attn.o_proj.weight", "NHD", "D(NH)"),
    _Entry("language.layers.mlp_norm", "model.layers.{}.post_attention_layernorm.weight", "D", "D"),
    _Entry("language.layers.gate", "model.layers.{}.mlp.gate_proj.weight", "DF", "FD"),
    _Entry("language.layers.up", "model.layers.{}.mlp.up_proj.weight", "DF", "FD"),
    _Entry("language.layers.down", "model.layers.{}.mlp.down_proj.weight", "FD", "DF"),
    # A patch is channels c, frames t, rows y, columns x.
    _Entry("vision.patch_embedding", "visual.patch_embed.proj.weight", "pD", "Dp"),
    _Entry("vision.blocks.norm1", "visual.blocks.{}.norm1.weight", "D", "D"),
    _Entry("vision.blocks.norm2", "visual.blocks.{}.norm2.weight", "D", "D"),
    _Entry("vision.blocks.qkv", "visual.blocks.{}.attn.qkv.weight", "DcNH", "(cNH)D"),
    _Entry("vision.blocks.qkv_bias", "visual.blocks.{}.attn.qkv.bias", "cNH", "(cNH)"),
    _Entry("vision.blocks.output", "visual.blocks.{}.attn.proj.weight", "NHD", "D(NH)"),
    _Entry("vision.blocks.output_bias", "visual.blocks.{}.attn.proj.bias", "D", "D"),
    _Entry("vision.blocks.gate", "visual.blocks.{}.mlp.gate_proj.weight", "DF", "FD"),
    _Entry("vision.blocks.gate_bias", "visual.blocks.{}.mlp.gate_proj.bias", "F", "F"),
    _Entry("vision.blocks.up", "visual.blocks.{}.mlp.up_proj.weight", "DF", "FD"),
    _Entry("vision.blocks.up_bias", "visual.blocks.{}.mlp.up_proj.bias", "F", "F"),
    _Entry("vision.blocks.down", "visual.blocks.{}.mlp.down_proj.weight", "FD", "DF"),
    _Entry("vision.blocks.down_bias", "visual.blocks.{}.mlp.down_proj.bias", "D", "D"),
    _Entry("vision.merger_norm", "visual.merger.ln_q.weight", "D", "D"),
    _Entry("vision.merger_in", "visual.merger.mlp.0.weight", "FD", "DF"),
    _Entry("vision.merger_in_bias", "visual.merger.mlp.0.bias", "D", "D"),
    _Entry("vision.merger_out", "visual.merger.mlp.2.weight", "FD", "DF"),
    _Entry("vision.merger_out_bias", "visual.merger.mlp.2.bias", "D", "D"),
)

_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def published_name(name: str) -> str:
    """A tensor name of either generation as the released files have it."""
    name = re.sub(r"^model\.language_model\.", "model.", name)
    return re.sub(r"^model\.visual\.", "visual.", name)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each tensor of a directory lies and how it is stored, so that saving can repeat it.

    Attributes:
      tensors: name in the file -> (file, dtype).
      source: directory whose other files (config, tokenizer, template) are copied; None writes a config alone.
    """

    tensors: Mapping[str, tuple[str, np.dtype]]
    source: epath.Path | None

    def files(self) -> dict[str, list[str]]:
        """File -> names of its tensors."""
        out = collections.defaultdict(list)
        for name, (file, _) in self.tensors.items():
            out[file].append(name)
        return dict(out)


def abstract_model(config: ModelConfig) -> Qwen2_5_VL:
    """The model's shapes without its weights."""
    return nnx.eval_shape(lambda: Qwen2_5_VL(config, nnx.Rngs(0)))


def read_layout(directory: str | epath.Path) -> Layout:
    """Reads the headers of all shards.

    Raises:
      InputError: a shard that the index names is missing or unreadable.
    """
    directory = epath.Path(directory)
    index = directory / _INDEX
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (directory / _WEIGHTS).exists():
        files = [_WEIGHTS]
    else:
        raise InputError(f"{directory} holds no weights: expected {_WEIGHTS} or {_INDEX}")
    tensors = {}
    for file in files:
        with _open(directory / file) as shard:
            for name in shard.keys():
                kind = shard.get_slice(name).get_dtype()
                if kind not in _DTYPES:
                    raise InputError(f"{directory / file}: tensor {name} is {kind}, expected F32, F16 or BF16")
                tensors[name] = (file, _DTYPES[kind])
    return Layout(tensors, directory)


def new_layout(model: Qwen2_5_VL, dtype: np.dtype | type = ml_dtypes.bfloat16) -> Layout:
    """A single-file layout for a model that came from no directory."""
    return Layout({name: (_WEIGHTS, np.dtype(dtype)) for _, _, names in _walk(model) for name in names}, None)


def load(
    directory: str | epath.Path,
    *,
    dtype: np.dtype | type | None = np.float32,
    place: Callable[[str, np.ndarray], jax.Array] = lambda path, array: jax.numpy.asarray(array),
) -> Qwen2_5_VL:
    """Loads a checkpoint.

    Args:
      directory: single-file or sharded safetensors with `config.json`, key names of either generation.
      dtype: of the loaded weights; None keeps each as stored.
      place: puts one array (named by its path in the model) on the devices; its host copy is freed afterwards.

    Raises:
      InputError: all missing, extra and wrong-shaped tensors in one message.
    """
    config = read_config(directory)
    layout = read_layout(directory)
    model = abstract_model(config)
    expected = {name: (entry, leaf) for entry, leaf, names in _walk(model) for name in names}
    by_name = {published_name(name): (name, file, stored) for name, (file, stored) in layout.tensors.items()}
    tied_copy = config.text.tied_head and by_name.pop("lm_head.weight", None)
    problems = [f"missing {name}" for name in expected if name not in by_name]
    problems += [f"unexpected {by_name[name][0]}" for name in by_name if name not in expected]
    if problems:
        _report(directory, problems)

    # Any tensor of a stack tells its dtype: files do not mix dtypes inside one.
    arrays: dict[str, np.ndarray] = {}
    for entry, leaf, names in _walk(model):
        arrays[entry.path] = np.empty(leaf.shape, dtype or by_name[names[0]][2])
    by_file = collections.defaultdict(list)
    for published, (name, file, _) in by_name.items():
        by_file[file].append((published, name))
    for file, names in sorted(by_file.items()):
        with _open(epath.Path(directory) / file) as shard:
            for published, name in names:
                entry, leaf = expected[published]
                shape = leaf.shape[1:] if entry.stacked else leaf.shape
                found = tuple(shard.get_slice(name).get_shape())
                # The patch embedding is a [D, c, t, y, x] convolution in the file.
                wanted = (
                    _convolution_shape(config) if entry.path == "vision.patch_embedding" else entry.file_shape(shape)
                )
                if found != wanted:
                    problems.append(f"{name} has shape {list(found)}, expected {list(wanted)}")
                    continue
                tensor = entry.from_file(shard.get_tensor(name).reshape(entry.file_shape(shape)), shape)
                if entry.stacked:
                    arrays[entry.path][_layer_of(published)] = tensor
                else:
                    arrays[entry.path][...] = tensor
    if problems:
        _report(directory, problems)
    if tied_copy:
        with _open(epath.Path(directory) / tied_copy[1]) as shard:
            if not np.array_equal(shard.get_tensor(tied_copy[0]).astype(np.float32), arrays["language.embedding"]):
                raise InputError(f"{directory}: the head is tied, but {tied_copy[0]} differs from the embedding")

    return jax.tree_util.tree_map_with_path(lambda path, _: place(_path(path), arrays.pop(_path(path))), model)


def save(model: Qwen2_5_VL, directory: str | epath.Path, layout: Layout) -> None:
    """Writes a directory as `layout` says, through a temporary folder beside it: it is there whole or not at all.

    Raises:
      InputError: the directory exists already.
    """
    directory = epath.Path(directory)
    if directory.exists():
        raise InputError(f"{directory} exists already: nothing was written")
    temporary = directory.parent / f"{directory.name}.partial-{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True)
    try:
        if layout.source is None:
            dtype = next(iter(layout.tensors.values()))[1]
            (temporary / "config.json").write_text(json.dumps(model.config.to_hf(dtype.name), indent=2) + "\n")
        else:
            for file in sorted(layout.source.iterdir()):
                if file.is_file() and file.name not in layout.files():
                    file.copy(temporary / file.name)
        published = {published_name(name): name for name in layout.tensors}
        for file, names in layout.files().items():
            wanted = {published_name(name) for name in names}
            tensors = {
                published[name]: make().astype(layout.tensors[published[name]][1])
                for name, make in _file_tensors(model)
                if name in wanted
            }
            safetensors.numpy.save_file(tensors, temporary / file, metadata={"format": "pt"})
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _file_tensors(model: Qwen2_5_VL) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Every tensor of the files by published name, made when called."""
    for entry, leaf, names in _walk(model):
        for layer, name in enumerate(names):

            def make(entry: _Entry = entry, leaf: jax.Array = leaf, layer: int = layer) -> np.ndarray:
                array = entry.to_file(np.asarray(leaf[layer] if entry.stacked else leaf))
                convolution = entry.path == "vision.patch_embedding"
                return np.ascontiguousarray(array.reshape(_convolution_shape(model.config)) if convolution else array)

            yield name, make
    if model.config.text.tied_head:
        yield "lm_head.weight", lambda: np.asarray(model.language.embedding[...])


def _walk(model: Qwen2_5_VL) -> Iterator[tuple[_Entry, jax.Array | jax.ShapeDtypeStruct, list[str]]]:
    """Entry, our array and the published names that it holds, for every array of the model."""
    leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
    for entry in _TABLE:
        leaf = leaves.pop(entry.path, None)
        if leaf is not None:
            names = [entry.name.format(i) for i in range(leaf.shape[0])] if entry.stacked else [entry.name]
            yield entry, leaf, names
    assert not leaves, f"weights without a published name: {sorted(leaves)}"


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _layer_of(name: str) -> int:
    return int(re.search(r"\.(\d+)\.", name).group(1))


def _convolution_shape(config: ModelConfig) -> tuple[int, ...]:
    vision = config.vision
    return (vision.width, vision.channels, vision.temporal_patch, vision.patch, vision.patch)


def _open(path: epath.Path):
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from None


def _report(directory: str | epath.Path, problems: list[str]) -> None:
    shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
    raise InputError(f"{directory} does not fit its config.json: {shown}")
