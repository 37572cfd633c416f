"""The server against the loaded run it serves: one client and eight, 200 requests, answers and memory.

    python benchmarks/serving.py RUN --json benchmarks/results/serving.json

RUN is a finished run's folder. In one process and one run: ``generate`` in a loop, then one client, then eight at once,
on the same prompts, round by round; then 200 requests of eight clients to three variants in turn by chance. Ratios are
of throughput, loop = 1, round by round; wanted are 0.9 of one client and 2.5 of eight. Every answer is set beside what
``generate`` gives for that prompt and variant alone: it may differ where rounding in a batch tips a token, and must not
be another request's. Memory is the process's, before the requests and at every 25th of them. What is there so far is
printed and written on the way. Server, clients and model share the process's cores; on one core, or beside other
programs, ratios by CPU seconds (of all threads, clients included) say more than those by the clock.
"""

import argparse
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from measure import MIB, ratios, summary
from openai import OpenAI

import saelora
from saelora.manifest import environment, write_json
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
WANTED = {"one client": 0.9, "eight clients": 2.5}
CLIENTS = 8


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=8, help="of each answer")
    parser.add_argument("--prompts", type=int, default=16, help="different ones, all of them in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    bench = Bench(args)
    try:
        bench.measure()
    finally:
        bench.close()
    return bench.report


@dataclass
class Tally:
    """Answers against those that ``generate`` gives alone."""

    n: int = 0
    lost: int = 0
    not_as_alone: int = 0
    of_another: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def take(self, asked: tuple[str, str], answer: str | None, alone: dict[tuple[str, str], str]) -> None:
        """Count one; None is no answer."""
        self.n += 1
        self.lost += answer is None
        if answer is None or answer == alone[asked]:
            return
        self.not_as_alone += 1
        self.of_another += any(answer == text for pair, text in alone.items() if pair != asked)
        self.examples.append({"asked": " | ".join(asked), "alone": alone[asked], "served": answer})


class Bench:
    """A run, a server of it in this process, and what has been measured so far."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.began = args, time.perf_counter()
        self.run = saelora.load(args.run)
        draw = random.Random(0)
        years = draw.sample(range(1800, 2020), args.prompts)
        self.prompts = [f"{draw.choice(TEXTS)} {year}" for year in years]
        self.alone: dict[tuple[str, str], str] = {}
        pairs = [(prompt, variant) for prompt in self.prompts for variant in VARIANTS]
        self.asked = [draw.choice(pairs) for _ in range(args.requests)]
        self.engine = Engine(self.run, most_rows=CLIENTS)
        place = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(application(self.engine, Limits(timeout=3600)), log_level="error"))
        threading.Thread(target=self.server.run, kwargs={"sockets": [place]}, daemon=True).start()
        where = f"http://127.0.0.1:{place.getsockname()[1]}/v1"
        self.client = OpenAI(base_url=where, api_key="none", timeout=3600, max_retries=0)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        self.report: dict[str, Any] = {
            "finished": False,
            "inputs": {key: value for key, value in vars(args).items() if key != "json"},
            "cores": cores,
            "load_before": os.getloadavg()[0],
            "environment": environment().to_json(),
        }
        self.say(f"loaded {args.run}, on cores {cores}")

    def say(self, text: str) -> None:
        """A line of progress; what there is by now goes into the file."""
        self.report["seconds"] = round(time.perf_counter() - self.began, 1)
        print(f"{self.report['seconds']:6.0f} s  {text}", flush=True)
        if self.args.json:
            write_json(self.args.json, self.report)

    def measure(self) -> None:
        self.rounds()
        self.all_variants_alone()
        self.requests()
        self.report["finished"] = True
        self.say(f"memory grew by {self.report['memory_mb']['grown']:.0f} MB")

    def ask(self, pair: tuple[str, str]) -> str | None:
        """An answer; None where there was none."""
        prompt, variant = pair
        try:
            made = self.client.completions.create(model=variant, prompt=prompt, max_tokens=self.args.tokens)
        except Exception as error:
            print(f"no answer to {pair}: {error}", flush=True)
            return None
        return made.choices[0].text

    def at_once(self, pairs: Sequence[tuple[str, str]], clients: int) -> list[str | None]:
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(self.ask, pairs))

    def loop(self, pairs: Sequence[tuple[str, str]]) -> None:
        for prompt, variant in pairs:
            self.alone[prompt, variant] = self.run.generate(prompt, max_new_tokens=self.args.tokens)

    def rounds(self) -> None:
        """Throughput: in turn, so that a slow minute falls on all; the first answers warm everything up."""
        pairs = [(prompt, "adapted") for prompt in self.prompts]
        self.loop(pairs[:2])
        self.at_once(pairs[:2], 2)
        arms: dict[str, Callable[[], Any]] = {
            "loop": lambda: self.loop(pairs),
            "one client": lambda: self.at_once(pairs, 1),
            "eight clients": lambda: self.at_once(pairs, CLIENTS),
        }
        taken: dict[str, list[float]] = {name: [] for name in arms}
        worked: dict[str, list[float]] = {name: [] for name in arms}
        tally = Tally()
        for round_ in range(self.args.rounds):
            for name, call in arms.items():
                began, cpu = time.perf_counter(), time.process_time()
                answers = call()
                taken[name].append(time.perf_counter() - began)
                worked[name].append(time.process_time() - cpu)
                self.say(f"round {round_ + 1} of {self.args.rounds}, {name}: {taken[name][-1]:.1f} s")
                for pair, answer in zip(pairs, answers or (), strict=False):
                    tally.take(pair, answer, self.alone)
            n = len(pairs) * self.args.tokens
            rates: dict[str, dict[str, Any]] = {
                name: {
                    "tokens_per_second": summary([n / each for each in taken[name]]),
                    "cpu_seconds_per_token": summary([each / n for each in worked[name]]),
                }
                for name in arms
            }
            for name, wanted in WANTED.items():
                rates[name]["wanted"] = wanted
                rates[name]["over_loop"] = ratios(taken["loop"], taken[name])
                rates[name]["over_loop_by_cpu"] = ratios(worked["loop"], worked[name])
            self.report |= {"throughput": rates, "answers_of_rounds": vars(tally)}
            told = ", ".join(
                f"{name} {rates[name]['over_loop']['values'][-1]:.2f} (by CPU "
                f"{rates[name]['over_loop_by_cpu']['values'][-1]:.2f})"
                for name in WANTED
            )
            self.say(f"round {round_ + 1} of {self.args.rounds}, over the loop: {told}")

    def all_variants_alone(self) -> None:
        """What every request may ask, from ``generate``."""
        for variant in VARIANTS:
            with self.run.as_variant(variant):
                self.loop([pair for pair in dict.fromkeys(self.asked) if pair[1] == variant and pair not in self.alone])
            self.say(f"{len(self.alone)} answers known alone")

    def requests(self) -> None:
        """Many requests at once: none lost, none mixed up, memory flat."""
        self.at_once(self.asked[: 2 * CLIENTS], CLIENTS)  # buffers reach their size
        memory, tally, done = [resident()], Tally(), threading.Lock()
        began = time.perf_counter()

        def one(pair: tuple[str, str]) -> None:
            answer = self.ask(pair)
            with done:
                tally.take(pair, answer, self.alone)
                if tally.n % 25 and tally.n != self.args.requests:
                    return
                memory.append(resident())
                grown = memory[-1] - memory[0]
                self.report |= {"requests": vars(tally), "memory_mb": {"resident": list(memory), "grown": grown}}
                self.report["requests_seconds"] = round(time.perf_counter() - began, 1)
                words = f"{tally.lost} lost, {tally.not_as_alone} not as alone, {tally.of_another} of another request"
                self.say(f"{tally.n} of {self.args.requests} requests: {words}; {memory[-1]:.0f} MB")

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(one, self.asked))

    def close(self) -> None:
        self.server.should_exit = True
        self.engine.stop()


def resident() -> float:
    """MB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


if __name__ == "__main__":
    main()
