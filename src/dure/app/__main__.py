"""`python -m dure.app VERB …` becomes `python -m dure.app.VERB …`: one module a process, and no other is imported."""

from __future__ import annotations

import os
import sys

VERBS = ("up", "fetch")

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in VERBS:
        os.execv(sys.executable, [sys.executable, "-m", f"dure.app.{sys.argv[1]}", *sys.argv[2:]])
    print(f"usage: python -m dure.app {{{','.join(VERBS)}}} …", file=sys.stderr)
    sys.exit(2)
