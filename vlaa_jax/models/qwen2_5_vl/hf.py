"""Hugging Face directories: load, and save so that a round trip changes no byte of any tensor.

One table maps our stacked weights to published names. Shards are read and written one after the other, so the host
holds the model and at most one shard.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import nnx

from vlaa_jax import storage
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl.config import ModelConfig, read_config
from vlaa_jax.models.qwen2_5_vl.model import Qwen2_5_VL

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Weights in other formats, and indices: copied beside new weights they would be out of date.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf")  # in formats that are not read here
_WEIGHT_SUFFIXES = (".safetensors", ".index.json", *_OTHER_WEIGHTS)
_TEMPLATE_FOLDER = "additional_chat_templates"


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
    # p is one patch. The file keeps a convolution with a kernel of that size: [D, channels, frames, rows, columns].
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
    # Qwen2-VL's tower has layer norms and an MLP of two layers.
    _Entry("vision.blocks.norm1_bias", "visual.blocks.{}.norm1.bias", "D", "D"),
    _Entry("vision.blocks.norm2_bias", "visual.blocks.{}.norm2.bias", "D", "D"),
    _Entry("vision.blocks.mlp_in", "visual.blocks.{}.mlp.fc1.weight", "DF", "FD"),
    _Entry("vision.blocks.mlp_in_bias", "visual.blocks.{}.mlp.fc1.bias", "F", "F"),
    _Entry("vision.blocks.mlp_out", "visual.blocks.{}.mlp.fc2.weight", "FD", "DF"),
    _Entry("vision.blocks.mlp_out_bias", "visual.blocks.{}.mlp.fc2.bias", "D", "D"),
    _Entry("vision.merger_norm_bias", "visual.merger.ln_q.bias", "D", "D"),
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
class Stored:
    """One tensor of a directory: the file that holds it, its dtype and its shape."""

    file: str
    dtype: np.dtype
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each tensor of a directory lies and how it is stored, so that saving can repeat it.

    Attributes:
      tensors: by name in the file.
      source: directory whose other files (config, tokenizer, templates) are copied; None writes a config alone.
    """

    tensors: Mapping[str, Stored]
    source: epath.Path | None

    def files(self) -> dict[str, list[str]]:
        """File -> names of its tensors."""
        out = collections.defaultdict(list)
        for name, stored in self.tensors.items():
            out[stored.file].append(name)
        return dict(out)


def abstract_model(config: ModelConfig) -> Qwen2_5_VL:
    """The model's shapes without its weights."""
    return nnx.eval_shape(lambda: Qwen2_5_VL(config, nnx.Rngs(0)))


def local_folder(directory: str | os.PathLike[str]) -> pathlib.Path:
    """The directory; one in a bucket (`gs://...`) is fetched into the cache, without weights of other formats.

    Raises:
      InputError: the bucket cannot be read.
    """
    if not storage.is_remote(directory):
        return pathlib.Path(directory)
    return storage.fetch_folder(
        os.fspath(directory),
        lambda name: not name.endswith(_OTHER_WEIGHTS),
        expected="a Hugging Face directory of a Qwen2.5-VL or Qwen2-VL",
    )


def read_layout(directory: str | epath.Path) -> Layout:
    """Reads the headers of all shards, without their weights, and holds them against `config.json`.

    Raises:
      InputError: not a checkpoint of this architecture; a shard that is missing or damaged; all missing, unexpected,
        repeated and wrong-shaped tensors in one message.
    """
    directory = epath.Path(directory)
    config = read_config(directory)
    # As in transformers, a single file goes before an index.
    if (directory / _WEIGHTS).exists():
        files = [_WEIGHTS]
    elif (directory / _INDEX).exists():
        files = _index_files(directory / _INDEX)
    else:
        raise InputError(f"{directory} holds no weights: expected {_WEIGHTS} or {_INDEX}")
    tensors, repeated = {}, []
    for file in files:
        with _open(directory / file) as shard:
            for name in shard.keys():
                header = shard.get_slice(name)
                if header.get_dtype() not in _DTYPES:
                    raise InputError(f"{directory / file}: {name} is {header.get_dtype()}, expected F32, F16 or BF16")
                if name in tensors:
                    repeated.append(f"{name} is both in {tensors[name].file} and in {file}")
                tensors[name] = Stored(file, _DTYPES[header.get_dtype()], tuple(header.get_shape()))
    layout = Layout(tensors, directory)
    _check(layout, _places(abstract_model(config)), f"{directory} does not fit its config.json", repeated)
    return layout


def new_layout(model: Qwen2_5_VL, dtype: np.dtype | type = ml_dtypes.bfloat16) -> Layout:
    """A single-file layout, with published names, for a model that came from no directory."""
    places = _places(model).items()
    return Layout({n: Stored(_WEIGHTS, np.dtype(dtype), p.file_shape) for n, p in places if not p.copy}, None)


def load(
    directory: str | epath.Path,
    *,
    dtype: np.dtype | type | None = np.float32,
    place: Callable[[str, np.ndarray], jax.Array] = lambda path, array: jax.device_put(array),
) -> Qwen2_5_VL:
    """Loads a checkpoint.

    Args:
      directory: single-file or sharded safetensors with `config.json`, key names of either generation.
      dtype: of the loaded weights. None keeps them as stored; layers that are stored in several dtypes share one array
        here, in the smallest dtype that holds the values of all.
      place: puts one array (named by its path in the model) on the devices; its host copy is freed afterwards.

    Raises:
      InputError: see `read_layout`; or a tied head whose stored copy differs from the embedding.
    """
    layout = read_layout(directory)
    model = abstract_model(read_config(directory))
    places = _places(model)
    _check_tied_copy(layout, places)
    stored = collections.defaultdict(list)
    for name, tensor in layout.tensors.items():
        stored[places[published_name(name)].entry.path].append(tensor.dtype)
    arrays = {
        _path(path): _empty(leaf.shape, np.dtype(dtype or functools.reduce(jnp.promote_types, stored[_path(path)])))
        for path, leaf in jax.tree_util.tree_leaves_with_path(model)
    }
    for file, names in layout.files().items():
        with _open(layout.source / file) as shard:
            for name in names:
                slot = places[published_name(name)]
                if not slot.copy:
                    array = arrays[slot.entry.path]
                    (array if slot.layer is None else array[slot.layer])[...] = slot.from_file(shard.get_tensor(name))
    return jax.tree_util.tree_map_with_path(lambda path, _: place(_path(path), arrays.pop(_path(path))), model)


def save(model: Qwen2_5_VL, directory: str | epath.Path, layout: Layout) -> None:
    """Writes a directory as `layout` says, through a temporary folder beside it: it is there whole or not at all.

    Raises:
      InputError: the directory exists already, the layout is another model's, or its source is gone.
    """
    directory = epath.Path(directory)
    if directory.exists():
        raise InputError(f"{directory} exists already: nothing was written")
    places = _places(model)
    _check(layout, places, f"{directory} was not written: the model does not fit its layout")
    copied = _companions(layout)
    temporary = directory.parent / f"{directory.name}.partial-{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True)
    try:
        for file in copied:
            target = temporary / file.relative_to(layout.source)
            target.parent.mkdir(exist_ok=True)
            file.copy(target)
        if layout.source is None:
            dtype = next(iter(layout.tensors.values())).dtype
            (temporary / "config.json").write_text(json.dumps(model.config.to_hf(dtype.name), indent=2) + "\n")
        for file, names in layout.files().items():
            tensors = {name: places[published_name(name)].to_file(layout.tensors[name].dtype) for name in names}
            safetensors.numpy.save_file(tensors, temporary / file, metadata={"format": "pt"})
            del tensors  # before the next shard is made
            # Safetensors makes files that only their owner can read.
            os.chmod(temporary / file, os.stat(temporary / "config.json").st_mode & 0o777)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where one published tensor lives in our model.

    Attributes:
      leaf: our array, concrete or abstract; stacked over layers if `layer` is a number.
      file_shape: shape of the file's tensor.
      copy: a tied head, which files may repeat.
    """

    entry: _Entry
    leaf: jax.Array | jax.ShapeDtypeStruct
    layer: int | None
    file_shape: tuple[int, ...]
    copy: bool = False

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        """The file's tensor with our axes."""
        axes, letters = self.entry.axes, re.sub(r"\W", "", self.entry.published)
        sizes = dict(zip(axes, self.leaf.shape[self.entry.stacked :], strict=True))
        return tensor.reshape([sizes[a] for a in letters]).transpose([letters.index(a) for a in axes])

    def to_file(self, dtype: np.dtype) -> np.ndarray:
        """Our values as the file has them."""
        array = np.asarray(self.leaf if self.layer is None else self.leaf[self.layer])
        letters = re.sub(r"\W", "", self.entry.published)
        turned = array.transpose([self.entry.axes.index(a) for a in letters])
        return np.ascontiguousarray(turned, dtype).reshape(self.file_shape)


def _places(model: Qwen2_5_VL) -> dict[str, _Place]:
    """Every tensor of the files by published name."""
    leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
    vision = model.config.vision
    out = {}
    for entry in _TABLE:
        leaf = leaves.pop(entry.path, None)
        if leaf is None:  # a tied model has no head of its own, and a tower one kind of block
            continue
        sizes = dict(zip(entry.axes, leaf.shape[entry.stacked :], strict=True))
        axes = re.findall(r"\((\w+)\)|(\w)", entry.published)
        shape = tuple(math.prod(sizes[letter] for letter in group or single) for group, single in axes)
        if entry.path == "vision.patch_embedding":
            shape = (vision.width, vision.channels, vision.temporal_patch, vision.patch, vision.patch)
        if entry.stacked:
            out |= {entry.name.format(i): _Place(entry, leaf, i, shape) for i in range(leaf.shape[0])}
        else:
            out[entry.name] = _Place(entry, leaf, None, shape)
    assert not leaves, f"weights without a published name: {sorted(leaves)}"
    if model.config.text.tied_head:
        out["lm_head.weight"] = dataclasses.replace(out["model.embed_tokens.weight"], copy=True)
    return out


def _check(layout: Layout, places: Mapping[str, _Place], complaint: str, problems: Sequence[str] = ()) -> None:
    """Raises one InputError that names every tensor that is missing, unexpected, repeated or of a wrong shape."""
    problems, names = list(problems), {}
    for name in layout.tensors:
        first = names.setdefault(published_name(name), name)
        if first != name:
            problems.append(f"{name} repeats {first}")
    problems += [f"missing {name}" for name, place in places.items() if name not in names and not place.copy]
    for published, name in names.items():
        shape = layout.tensors[name].shape
        if published not in places:
            problems.append(f"unexpected {name}")
        elif shape != places[published].file_shape:
            problems.append(f"{name} has shape {list(shape)}, expected {list(places[published].file_shape)}")
    if problems:
        raise InputError(f"{complaint}: {'; '.join(_condense(problems))}")


def _condense(problems: Sequence[str]) -> list[str]:
    """Problems that differ in a running layer number become one: `missing model.layers.{0..35}.mlp.up_proj.weight`."""
    groups = collections.defaultdict(list)
    for problem in problems:
        before, number, after = [*re.split(r"(?<=\.)(\d+)(?=\.)", problem, maxsplit=1), "", ""][:3]
        groups[before, after].append(number)
    out = []
    for (before, after), numbers in groups.items():
        layers = sorted(int(number) for number in numbers if number)
        if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
            numbers = [f"{{{layers[0]}..{layers[-1]}}}"]
        out += [before + number + after for number in numbers]
    return out


def _check_tied_copy(layout: Layout, places: Mapping[str, _Place]) -> None:
    """A tied head may be stored once more, but not with other values: transformers would then use both."""
    if "lm_head.weight" not in layout.tensors or not places["lm_head.weight"].copy:
        return
    [embedding] = [name for name in layout.tensors if published_name(name) == "model.embed_tokens.weight"]
    values = []
    for name in (embedding, "lm_head.weight"):
        with _open(layout.source / layout.tensors[name].file) as shard:
            values.append(shard.get_tensor(name))
    if not np.array_equal(*values):
        raise InputError(f"{layout.source}: the head is tied, but lm_head.weight differs from {embedding}")


def _companions(layout: Layout) -> list[epath.Path]:
    """Files of the layout's source that are not weights, and its index if that describes the layout."""
    source = layout.source
    if source is None:
        return []
    if not source.is_dir():
        raise InputError(f"{source} is gone: its config, tokenizer and template files belong into the new directory")
    templates = source / _TEMPLATE_FOLDER
    files = [*source.iterdir(), *(templates.iterdir() if templates.is_dir() else [])]
    out = [file for file in files if file.is_file() and not file.name.endswith(_WEIGHT_SUFFIXES)]
    if (source / _INDEX).exists() and set(_index_files(source / _INDEX)) == set(layout.files()):
        out.append(source / _INDEX)
    return out


def _index_files(path: epath.Path) -> list[str]:
    """The shards that an index names."""
    try:
        return sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not an index of shards, a JSON object with a weight_map: {error!r}") from None


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory at a multiple of 64 bytes: JAX on the CPU takes it over and makes no second copy of the stack."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _open(path: epath.Path):
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from None
