"""The data of the sotu_* tasks: held-out State of the Union addresses, as one small file beside this one.

lm-eval calls ``load``. The file was made by

    python examples/tasks/sotu_data.py

from the addresses that saelora holds out for validation, so no adapter trained on ``--data sotu`` has seen them.
"""

import json
import random
import re
from pathlib import Path

FILE = Path(__file__).with_name("sotu.jsonl")
N_DOCUMENTS, CONTEXT, CONTINUATION, N_CHOICES = 200, 60, 16, 4  # passages; words of each part; one choice is true


def load(**options):
    """What lm-eval asks a custom data set for: its splits."""
    from datasets import Dataset

    with FILE.open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def make(texts, n_documents=N_DOCUMENTS, seed=0):
    """Passages, each with its true continuation among others from the same address, so that style tells nothing."""
    draw = random.Random(seed)
    rows = []
    for text in texts:
        words = re.sub(r"\[[^\]]*\]", " ", text).split()
        starts = list(range(0, len(words) - CONTEXT - CONTINUATION, CONTEXT + CONTINUATION))
        if len(starts) < 2 * N_CHOICES:
            continue
        for start in starts:
            if not words[start + CONTEXT + CONTINUATION - 1].isalpha():
                continue  # a number's perplexity would drown all others'
            others = draw.sample([s for s in starts if s != start], N_CHOICES - 1)
            choices = [" ".join(words[s + CONTEXT : s + CONTEXT + CONTINUATION]) for s in (start, *others)]
            order = draw.sample(range(N_CHOICES), N_CHOICES)
            rows.append(
                {
                    "passage": " ".join(words[start : start + CONTEXT]),
                    "choices": [choices[i] for i in order],
                    "answer": order.index(0),
                }
            )
    return draw.sample(rows, min(n_documents, len(rows)))


def main():
    from saelora.data.corpus import open_corpus
    from saelora.data.pack import in_validation

    texts = [document.text for document in open_corpus("sotu").documents()]
    rows = make([text for text in texts if in_validation(text, 0.05)])
    FILE.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} passages, {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
