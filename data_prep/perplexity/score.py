"""`python -m data_prep perplexity`: how likely a checkpoint finds the reference completion of every record.

The file appears when all records are scored. Until then finished batches stand in a hidden file beside it, from which
the same command goes on after a kill; it ends with the same file.
"""

import argparse
import contextlib
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator

from vlaa_jax.errors import InputError, check_output

SPANS = ("answer", "think")
MAX_PIXELS = 1280 * 28 * 28  # as in the recipe for SFT (configs/sft.py)
_LINE_EVERY = 30.0  # seconds between two lines of a log


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser's sub-commands."""
    parser = commands.add_parser(
        "perplexity", help="a checkpoint's mean negative log-likelihood of every record's answer"
    )
    parser.add_argument("--data", required=True, metavar="DIR:SPLIT", help="shards with traces")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="Hugging Face directory of the scorer")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.jsonl", help="file to make")
    parser.add_argument("--batch", type=int, default=16, help="records at a time, default %(default)s")
    parser.add_argument(
        "--span",
        choices=SPANS,
        default=SPANS[0],
        help="what is scored given the prompt: trace and answer (default), or the trace alone; the paper does not say",
    )
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, help="of a picture after resizing, default %(default)s"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    for name in ("batch", "max_pixels"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: expected 1 or more")
    check_output("--out", arguments.out)
    options = {name: getattr(arguments, name) for name in ("batch", "span", "max_pixels")}
    score_records(arguments.data, arguments.checkpoint, arguments.out, **options)


def score_records(
    data: str,
    checkpoint: str,
    out: pathlib.Path,
    *,
    batch: int = 16,
    span: str = "answer",
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Writes a file of scores, or goes on with one that was begun.

    Args:
      data: shards, DIRECTORY:SPLIT.
      checkpoint: Hugging Face directory of a Qwen2.5-VL or Qwen2-VL; it computes in the dtype of its files, and
        log-probabilities are float32.
      out: file to make.
      batch: records at a time; raised to what the devices share evenly.
      span: what of a completion is scored, one of `SPANS`.
      max_pixels: of a picture after resizing.

    Raises:
      InputError: `out` exists, records or checkpoint cannot be read, or a likelihood is not finite; names the record.
    """
    import jax

    from data_prep.perplexity.likelihood import Scorer, plan_batches
    from data_prep.perplexity.scores import to_lines, whole_batches
    from vlaa_jax.models.qwen2_5_vl import hf
    from vlaa_jax.models.qwen2_5_vl.config import read_config
    from vlaa_jax.models.qwen2_5_vl.encoder import open_encoder
    from vlaa_jax.processing.conversation import load_prompt
    from vlaa_jax.processing.index import build_index
    from vlaa_jax.processing.prompt_data import ReadAhead
    from vlaa_jax.processing.shards import RecordSource
    from vlaa_jax.rewards import check_gold
    from vlaa_jax.sharding import evenly, make_mesh, place_parameter

    if out.exists():
        raise InputError(f"--out: {out} exists already: nothing was scored")
    source, directory = RecordSource(data), hf.local_folder(checkpoint)
    sizes = read_config(directory)
    encoder = open_encoder(directory, load_prompt(), max_pixels=max_pixels)
    index = build_index(source, encoder, check_gold)
    if index.report():
        raise InputError(f"--data: {index.report()}")
    devices = jax.devices()
    mesh = make_mesh(devices, key_value_heads=sizes.text.key_value_heads)
    with jax.set_mesh(mesh) if len(devices) > 1 else contextlib.nullcontext():
        batch = evenly(batch)
        batches = plan_batches(index, batch)
        parts = [source.fingerprint, _identity(directory), batch, span, max_pixels]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
        partial = out.with_name(f".{out.name}.{key}.partial")
        ids = [[str(index.ids[place]) for place in each.places] for each in batches]
        done = whole_batches(partial, ids) if partial.exists() else 0
        print(f"{len(index)} records of {data} in {len(batches)} batches, {done} of them scored before", flush=True)
        if done < len(batches):
            model = hf.load(directory, dtype=None, place=place_parameter)
            scorer = Scorer(model, encoder, source, rows=batch, span=span)
            ahead = ReadAhead(lambda number: scorer.arrays(batches[number]))
            with partial.open("a", encoding="utf-8") as file:
                for number in _progress(done, len(batches)):
                    ahead.expect(range(number, min(number + 3, len(batches))))
                    file.write(to_lines(scorer.score(*ahead.take([number])[0])))
                    file.flush()
    partial.replace(out)


def _progress(start: int, stop: int) -> Iterator[int]:
    """Numbers of batches, with a bar on a terminal and lines in a log."""
    import tqdm

    began = said = time.monotonic()
    for number in tqdm.tqdm(range(start, stop), initial=start, total=stop, desc="scoring", leave=False, disable=None):
        yield number
        now = time.monotonic()
        if not sys.stderr.isatty() and (now - said > _LINE_EVERY or number + 1 == stop):
            left = (now - began) / (number + 1 - start) * (stop - number - 1)
            print(f"batch {number + 1} of {stop}, {tqdm.tqdm.format_interval(left)} left", file=sys.stderr, flush=True)
            said = now


def _identity(directory: pathlib.Path) -> list:
    """Tells a checkpoint from another one, or from what lay in its folder before."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
