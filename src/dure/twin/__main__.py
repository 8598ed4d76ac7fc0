"""`python -m dure.twin one-machine --seed N [--jobs N]`: one simulation; its laws as JSON, exit 1 if one broke."""

from __future__ import annotations

import argparse
import sys

from msgspec import json

from dure.twin.simulation import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="dure.twin")
    parser.add_argument("scenario", choices=["one-machine"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=500)
    told = parser.parse_args()
    result = simulate(told.seed, told.jobs)
    sys.stdout.buffer.write(json.format(json.encode(result), indent=1) + b"\n")
    return 0 if result.held else 1


sys.exit(main())
