#!/usr/bin/env bash
# One machine is a cloud. Run from the root of a fresh clone after `make setup`: one line a check, exit 1 on any failure.
#   acceptance/one-machine.sh [DATA TOOLS]      (neither is needed here; -k 1a 4 runs only the checks that begin so)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/bin/python ] || { echo "not ok 0 set-up: no .venv here, run 'make setup' first"; exit 1; }
# The script keeps its own limit; this one is for a script that hangs.
exec timeout --kill-after=30 5400 .venv/bin/python acceptance/one_machine.py "$@"
