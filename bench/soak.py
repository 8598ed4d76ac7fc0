"""`make soak ARGS="--seeds N"`: the one-machine simulation over many seeds; a failing seed names itself and replays."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from rich.progress import track

from dure.twin.simulation import Result, simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=1)
    asked = parser.parse_args()
    failed: list[Result] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        seeds = range(asked.first, asked.first + asked.seeds)
        for result in track(pool.map(simulate, seeds, chunksize=4), "simulating", total=len(seeds)):
            if not result.held:
                failed.append(result)
                broken = {law: found[:2] for law, found in result.broken.items() if found}
                print(f"seed {result.seed}: {broken}; replay: python -m dure.twin one-machine --seed {result.seed}")
    print(f"{asked.seeds} seeds, {len(failed)} broke a law")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
