"""How fast a build is, and how much memory it takes, when its models answer at once.

python tests/data_prep/build/scale.py --records=2000

Draws pictures of 448x448 in ArxivQA's layout, serves the four models from a process of its own and builds in another;
prints records a second of each step and of the whole, and the builder's peak memory. On 200,000 records it takes hours.
"""

import argparse
import io
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import builds
import numpy as np
import tqdm
from PIL import Image

LOOPBACK = builds.ROOT / "tests" / "loopback.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2000, help="pictures, one question each, default %(default)s")
    parser.add_argument("--folder", type=pathlib.Path, help="to work in; default: a temporary one, removed at the end")
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight, default %(default)s")
    parser.add_argument("--seconds", type=float, default=0.0, help="that the endpoint takes for an answer")
    options = parser.parse_args()
    folder = options.folder or pathlib.Path(tempfile.mkdtemp())
    try:
        if not (folder / "arxivqa" / "arxivqa.jsonl").exists():
            draw(folder / "arxivqa", options.records)
        measure(folder, options)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def draw(folder: pathlib.Path, records: int) -> None:
    """A source of distinct pictures: a coarse colour field, as photographs have, under a fine grain."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    grain = generator.integers(-20, 20, (448, 448, 3), np.int16)
    lines = []
    for number in tqdm.tqdm(range(records), desc="drawing", disable=None):
        coarse = Image.fromarray(generator.integers(0, 256, (14, 14, 3), np.uint8)).resize((448, 448))
        image = np.clip(np.asarray(coarse, np.int16) + np.roll(grain, number, axis=0), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=80)
        (folder / "images" / f"{number}.jpg").write_bytes(buffer.getvalue())
        row = {"id": f"scale-{number}", "image": f"images/{number}.jpg", "question": f"Which curve of figure {number}?"}
        lines.append(json.dumps(row | {"options": ["A) red", "B) blue"], "label": "AB"[number % 2], "rationale": ""}))
    (folder / "arxivqa.jsonl").write_text("\n".join(lines) + "\n")


def measure(folder: pathlib.Path, options: argparse.Namespace) -> None:
    serve = [sys.executable, str(LOOPBACK), f"--seconds={options.seconds}"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as endpoint:
        try:
            changes = {f"{step}__concurrency": options.concurrency for step in builds.MODELS}
            changes |= {"sources__arxivqa__limit": 0, "files": 16, "shards__records_per_shard": 4096}
            changes |= {"curation__quotas__arxivqa__rl": 10**9, "curation__quotas__arxivqa__sft": 10**9}
            arguments = builds.command(
                {"arxivqa": folder / "arxivqa"}, endpoint.stdout.readline().strip(), folder / "out", **changes
            )
            begin = time.monotonic()
            builder = subprocess.Popen(
                [sys.executable, "-m", "data_prep", *arguments], cwd=builds.ROOT, stderr=subprocess.PIPE, text=True
            )
            seconds = watch(builder)
        finally:
            endpoint.kill()
    if builder.returncode:
        sys.exit(builder.returncode)
    total = time.monotonic() - begin
    size = sum(path.stat().st_size for path in (folder / "arxivqa" / "images").iterdir()) / options.records
    # Of children: the builder is the largest (math workers and the endpoint are small beside it).
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{options.records:,} pictures of {size / 1024:.0f} KiB on {os.cpu_count()} cores")
    for step, spent in seconds.items():
        print(f"  {step:<10} {spent:8.1f} s  {options.records / spent:8.1f} records a second")
    print(f"  {'whole':<10} {total:8.1f} s  {options.records / total:8.1f} records a second")
    print(f"  peak memory of the builder: {peak:,.0f} MiB")


def watch(builder: subprocess.Popen) -> dict[str, float]:
    """Seconds of each step, from the lines in which it begins and ends."""
    begun: dict[str, float] = {}
    spent: dict[str, float] = {}
    for line in builder.stderr:
        sys.stderr.write(line)
        found = re.match(r"step \d (\w+)(: [\d,]+ \w+, .*set aside)?$", line.strip())
        if found and found[2]:
            spent[found[1]] = time.monotonic() - begun[found[1]]
        elif found:
            begun[found[1]] = time.monotonic()
    builder.wait()
    return spent


if __name__ == "__main__":
    main()
