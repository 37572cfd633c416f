"""Fingerprints of what the commands compute on the tests' tiny workspace: a move that changes no bit changes no line.

    python tests/golden.py --json before.json       # before the move
    python tests/golden.py --against before.json    # after it; names what differs and exits with 1

Hashes belong to one machine and one torch: compare those of one environment.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from helpers.workspace import ADAPT, CONTEXT, Workspace, as_flags, make_workspace, recipe_of

from saelora.cli import main as command

# What differs between two runs of the same code. The value is put aside, the key stays: one that is lost shows.
VOLATILE: dict[str, Any] = {
    **dict.fromkeys(("seconds", "seconds_training", "seconds_group", "checkpoint_seconds", "tokens_per_second"), 1.0),
    "environment": {},
}
SPEED = re.compile(r"in \d+ s \(\d+ tokens/s\)")
STEERING = {"steering_n": 2, "steering_tokens": 60 * CONTEXT, "steering_window": 8}
FEW = {**STEERING, "steering_tuning_texts": 2, "steering_test_texts": 2, "ablation_draws": 1}
MEASURED = {**FEW, "ablation_tokens": 4 * CONTEXT}
PARTS = ("loss", "tokens", "drift", "faithfulness", "steering")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the fingerprints here")
    parser.add_argument("--against", type=Path, help="compare with those that --json wrote")
    args = parser.parse_args(argv)
    before = json.loads(args.against.read_text()) if args.against else {}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as root, contextlib.chdir(root):  # relative paths: the same in every run
        for name, content in fingerprinted(make_workspace(Path("workspace"))):
            found[name] = hashlib.sha256(content).hexdigest()[:16]
            print(f"{name:36}{found[name]}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    differ = [name for name in dict.fromkeys([*before, *found]) if args.against and before.get(name) != found.get(name)]
    for name in differ:
        print(f"differs: {name} (was {before.get(name)}, is {found.get(name)})", file=sys.stderr)
    return 1 if differ else 0


def fingerprinted(workspace: Workspace) -> Iterator[tuple[str, bytes]]:
    """Every name, and the bytes that stand for it."""
    yield from _adapters(workspace)
    yield from _saes(workspace)
    yield from _tables(workspace)


def _adapters(workspace: Workspace) -> Iterator[tuple[str, bytes]]:
    given = {"data": workspace.data, **ADAPT, "tokens": 40 * CONTEXT}
    adapted = Path("adapt")
    words = said("adapt", workspace.model, *as_flags({**given, "sae": workspace.sae, "out": adapted, "samples": 1}))
    yield "adapt weights", (adapted / "adapter_model.safetensors").read_bytes()
    yield from _run("adapt", adapted, words)
    evaluate = said("evaluate", "--adapter", adapted, "--parts", *PARTS, *as_flags(MEASURED))
    yield "evaluate words", evaluate.encode()
    for part in PARTS:
        yield f"evaluate {part}", settled(adapted / "evals" / f"{part}.json")
    yield "report page", _page(adapted)
    for method in ("linear", "lora+sae"):
        out = Path(method)
        words = said("adapt", workspace.model, *as_flags({**given, "sae": workspace.sae, "out": out, "method": method}))
        yield f"{method} weights", (out / "sae/sae_weights.safetensors").read_bytes()
        yield from _run(method, out, words)


def _saes(workspace: Workspace) -> Iterator[tuple[str, bytes]]:
    few = {"tokens": 60 * CONTEXT}
    runs: dict[str, dict[str, Any]] = {"local": {}, "e2e": {"objective": "e2e", **few}}
    runs["e2e+downstream"] = {"objective": "e2e+downstream", **few}
    for name, options in runs.items():
        words = said("train-sae", *workspace.train_sae_flags(name, **options))
        yield f"train-sae {name} weights", Path(name, "sae_weights.safetensors").read_bytes()
        yield from _run(f"train-sae {name}", Path(name), words)
    given = {"sae": workspace.sae, "data": workspace.data, **ADAPT, "tokens": 40 * CONTEXT, "lr": 1e-3, "rank": None}
    words = said("finetune-sae", workspace.model, *as_flags({**given, "out": "finetuned"}))
    yield "finetune-sae weights", Path("finetuned/sae_weights.safetensors").read_bytes()
    yield from _run("finetune-sae", Path("finetuned"), words)


def _tables(workspace: Workspace) -> Iterator[tuple[str, bytes]]:
    Path("compare.yaml").write_text(yaml.safe_dump(recipe_of(workspace), sort_keys=False))
    said("compare", "compare.yaml", "--out", "compared")
    yield "compare results", settled(Path("compared/results.json"))
    base = {k: v for k, v in ADAPT.items() if k not in ("history_points", "history_tokens", "rank")}
    base |= {"model": str(workspace.model), "data": str(workspace.data), "sae": [str(workspace.sae)]}
    recipe = {"base": {**base, "tokens": 16 * CONTEXT}, "grid": {"rank": [1, 4]}}
    Path("sweep.yaml").write_text(yaml.safe_dump(recipe))
    yield "sweep words", said("sweep", "sweep.yaml", "--out", "swept").encode()
    yield "sweep results", settled(Path("swept/results.json"))


def _run(name: str, folder: Path, words: str) -> Iterator[tuple[str, bytes]]:
    """What every run leaves: figures, each step's, options, and what it said at its end."""
    yield f"{name} results", settled(folder / "results.json")
    yield f"{name} metrics", settled(folder / "metrics.jsonl")
    yield f"{name} options", settled(folder / "config.yaml")
    if words:  # train-sae has none
        yield f"{name} words", words.encode()


def said(*words: object) -> str:
    """What a command says on standard output; it must succeed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert command([str(word) for word in (*words, "--quiet")]) == 0, words
    return SPEED.sub("", out.getvalue())


def settled(path: Path) -> bytes:
    """A JSON file, of lines too, or a YAML file without its volatile values, in one order of keys."""
    text = path.read_text()
    value: Any
    if path.suffix == ".jsonl":
        value = [json.loads(line) for line in text.splitlines()]
    else:
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    return json.dumps(_settled(value), sort_keys=True).encode()


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: VOLATILE[key] if key in VOLATILE else _settled(inner) for key, inner in value.items()}
    return [_settled(inner) for inner in value] if isinstance(value, list) else value


def _page(run: Path) -> bytes:
    """The page of a copy of the run whose files hold no volatile value."""
    settled_run = Path("settled", run)
    shutil.copytree(run, settled_run)
    for file in settled_run.rglob("*.json"):
        file.write_bytes(settled(file))
    said("report", settled_run)
    return (settled_run / "report.html").read_bytes()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
