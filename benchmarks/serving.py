"""The server against the loaded run it serves: one client and eight, 200 requests, answers and memory.

    python benchmarks/serving.py RUN [--requests 200] [--tokens 32] [--json FILE]

RUN is a finished run's folder. In one process and one run: ``generate`` in a loop, then one client, then eight at once,
on the same prompts. Prints ratios of their throughput, how many answers differ from those given alone, and how much
the process has grown.
"""

import argparse
import json
import os
import platform
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
import uvicorn
from openai import OpenAI

import saelora
from saelora.use.serving.app import Limits, application
from saelora.use.serving.engine import Engine

TEXTS = [
    "Fellow citizens,",
    "The state of the union",
    "My administration will",
    "In the year",
    "We have",
    "Congress should",
]
VARIANTS = ("original", "spliced", "adapted")


def rss() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    run = saelora.load(args.run)
    random.seed(0)
    prompts = [f"{random.choice(TEXTS)} {random.randint(1800, 2020)}" for _ in range(16)]
    engine = Engine(run, most_rows=8)
    place = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application(engine, Limits(timeout=3600)), log_level="error")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True).start()
    client = OpenAI(base_url=f"http://127.0.0.1:{place.getsockname()[1]}/v1", api_key="none", timeout=3600)

    def ask(prompt: str, variant: str = "adapted") -> str:
        return client.completions.create(model=variant, prompt=prompt, max_tokens=args.tokens).choices[0].text

    def loop(of: Sequence[str]) -> list[str]:
        return [run.generate(prompt, max_new_tokens=args.tokens) for prompt in of]

    def at_once(pairs: Sequence[tuple[str, str]], clients: int) -> list[str]:
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(lambda pair: ask(*pair), pairs))

    loop(prompts[:2])
    found: dict[str, list[float]] = {"one client": [], "eight clients": []}
    for _ in range(args.rounds):  # in turn, so that a slow minute falls on all
        alone, _ = timed(lambda: loop(prompts))
        one, _ = timed(lambda: at_once([(p, "adapted") for p in prompts], 1))
        eight, _ = timed(lambda: at_once([(p, "adapted") for p in prompts], 8))
        found["one client"].append(alone / one)
        found["eight clients"].append(alone / eight)
    expected: dict[tuple[str, str], str] = {}
    for variant in VARIANTS:
        with run.as_variant(variant):
            expected |= {(p, variant): run.generate(p, max_new_tokens=args.tokens) for p in prompts}
    asked = [random.choice(list(expected)) for _ in range(args.requests)]
    at_once(asked[:16], 8)
    before = rss()
    answers = at_once(asked, 8)
    report = {
        "what": "throughput of the server over that of generate in a loop; 16 prompts a round, median of rounds",
        "run": str(args.run),
        "tokens": args.tokens,
        "rounds": args.rounds,
        **{name: {"ratio": statistics.median(r), "all": r} for name, r in found.items()},
        "requests": args.requests,
        "lost": args.requests - len(answers),
        "not as alone": sum(a != expected[pair] for a, pair in zip(answers, asked, strict=True)),
        "grown_mb": round((rss() - before) / 2**20, 1),
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    server.should_exit = True
    engine.stop()
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
