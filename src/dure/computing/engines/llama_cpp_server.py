"""The server process: `python -I llama_cpp_server.py CONFIG.json`. The one place that imports xllamacpp."""

from __future__ import annotations

import json
import signal
import sys

import xllamacpp


def main(path: str) -> int:
    """Serve until a signal ends the process; the keys of the file are those of LlamaCpp.launch."""
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    wanted = xllamacpp.CommonParams()
    wanted.model.path = config["model"]
    wanted.model_alias = {config["alias"]}
    wanted.hostnames = ["127.0.0.1"]
    wanted.port = config["port"]
    wanted.api_keys = [config["key"]]
    wanted.n_parallel = config["slots"]
    wanted.n_ctx = config["slots"] * config["context_tokens"]
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = config["threads"]
    wanted.n_threads_http = config["slots"] + 4
    wanted.cache_ram_mib = 0  # finished prompts are not kept in memory nobody granted
    wanted.cache_idle_slots = False
    wanted.cors_origins = ""
    wanted.endpoint_slots = wanted.endpoint_metrics = True
    wanted.ui = False
    wanted.verbosity = 2  # warnings: the seven lines a request of the next level fill a disk
    server = xllamacpp.Server(wanted)
    print(f"serving {config['alias']} on {server.listening_address}", flush=True)
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
