"""How fast a build is, and how much memory it takes, when its models answer at once.

python tests/build_scale.py --records=2000

Draws pictures of 448x448 in ArxivQA's layout, serves the four models from a process of its own and builds in another;
prints records a second of each step and of the whole, and the builder's CPU time and peak memory.
"""

import argparse
import asyncio
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
import loopback
import numpy as np
import tqdm
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2000, help="pictures, one question each, default %(default)s")
    parser.add_argument("--folder", type=pathlib.Path, help="to work in; default: a temporary one, removed at the end")
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight, default %(default)s")
    parser.add_argument("--serve", action="store_true", help="serve the models, and nothing else")
    parser.add_argument("--seconds", type=float, default=0.0, help="that the endpoint takes for an answer")
    options = parser.parse_args()
    if options.serve:
        serve(options.seconds)
    folder = options.folder or pathlib.Path(tempfile.mkdtemp())
    try:
        if not (folder / "arxivqa" / "arxivqa.jsonl").exists():
            draw(folder / "arxivqa", options.records)
        measure(folder, options)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def serve(seconds: float) -> None:
    """The models on loopback, until the process is killed.

    One loop without threads, which keeps nothing of a request: `loopback.Endpoint` takes as much time as the builder.
    """

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(seconds), "127.0.0.1", 0)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
        await server.serve_forever()

    asyncio.run(run())


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as far as the builder speaks it: a head, and a body of a known length."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._parts: list[bytes] = []
        self._missing = 0  # bytes of the body; 0 while the head comes

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if self._missing:
            self._missing -= len(data)
        else:
            head, end, body = b"".join(self._parts).partition(b"\r\n\r\n")
            if not end:
                return
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            self._parts, self._missing = [body], int(length[1]) - len(body)
        if not self._missing:
            body = answer(json.loads(b"".join(self._parts)))
            self._parts = []
            asyncio.get_running_loop().call_later(self._seconds, self._send, body)

    def _send(self, body: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def answer(request: dict) -> bytes:
    """As `loopback`; every reasoning is another one, so that nothing comes from the cache."""
    reply = loopback.answer(request)
    if "reasoner" in request["model"]:
        text = json.loads(reply.body)["choices"][0]["message"]["content"]
        reply = loopback.completion(request, f"{text} This is number {loopback.read(request)[2].hex()}.")
    return reply.body


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
    served = [sys.executable, __file__, "--serve", f"--seconds={options.seconds}"]
    with subprocess.Popen(served, stdout=subprocess.PIPE, text=True) as endpoint:
        try:
            changes = {f"{step}__concurrency": options.concurrency for step in builds.MODELS}
            changes |= {"sources__arxivqa__limit": 0}
            changes |= {"curation__quotas__arxivqa__rl": 10**9, "curation__quotas__arxivqa__sft": 10**9}
            arguments = builds.command(
                {"arxivqa": folder / "arxivqa"}, endpoint.stdout.readline().strip(), folder / "out", **changes
            )
            begin = time.monotonic()
            builder = subprocess.Popen([sys.executable, *arguments], cwd=builds.ROOT, stderr=subprocess.PIPE, text=True)
            seconds, usage = watch(builder)
        finally:
            endpoint.kill()
    if builder.returncode:
        sys.exit(builder.returncode)
    total = time.monotonic() - begin
    size = sum(path.stat().st_size for path in (folder / "arxivqa" / "images").iterdir()) / options.records
    spent = usage.ru_utime + usage.ru_stime
    print(f"{options.records:,} pictures of {size / 1024:.0f} KiB on {os.cpu_count()} cores")
    for step, own in seconds.items():
        print(f"  {step:<10} {own:8.1f} s  {options.records / own:8.1f} records a second")
    print(f"  {'whole':<10} {total:8.1f} s  {options.records / total:8.1f} records a second")
    print(f"  the builder alone: {spent:,.0f} s of CPU, peak memory {usage.ru_maxrss / 1024:,.0f} MiB")


def watch(builder: subprocess.Popen) -> tuple[dict[str, float], resource.struct_rusage]:
    """Seconds of each step, from the lines in which it begins and ends; and what the builder used."""
    begun: dict[str, float] = {}
    spent: dict[str, float] = {}
    for line in builder.stderr:
        sys.stderr.write(line)
        found = re.match(r"step \d (\w+)(: [\d,]+ \w+, .*set aside)?$", line.strip())
        if found and found[2]:
            spent[found[1]] = time.monotonic() - begun[found[1]]
        elif found:
            begun[found[1]] = time.monotonic()
    _, status, usage = os.wait4(builder.pid, 0)
    builder.returncode = os.waitstatus_to_exitcode(status)
    return spent, usage


if __name__ == "__main__":
    main()
