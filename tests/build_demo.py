"""A small VLAA-Thinking end to end, offline: `python tests/build_demo.py --out=DIR`.

Makes the nine sources in miniature below DIR, serves stand-ins for the four models on loopback, and runs the command
that it prints: but for names and addresses, that of a build from the real sources by real models.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys

import builds
import loopback
import source_fixtures


def main() -> int:
    """Returns the command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to make")
    out = parser.parse_args().out.resolve()
    if out.exists():
        parser.error(f"--out: {out} exists already")
    folders = source_fixtures.write_all(out / "sources")
    with loopback.Endpoint() as endpoint:
        command = builds.command(folders, endpoint.base_url, out)
        print(shlex.join(["python", *command]).replace(f"{builds.ROOT}/", "").replace(" --", " \\\n  --"), flush=True)
        return subprocess.run([sys.executable, *command], cwd=builds.ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
