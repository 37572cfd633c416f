"""The commands that are killed, at sizes of seconds, and what they leave: weights, figures, files."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import workspace as ws
from saelora.files import MARK

OFTEN = {"checkpoint_seconds": 0.02}  # so that most steps are saved, and most kills meet a write
SHORT = {"tokens": 24 * ws.CONTEXT, "eval_tokens": 4 * ws.CONTEXT, "history_points": 2, **OFTEN}
# what differs from run to run: time, and what was measured of the machine
VOLATILE = re.compile(r"(^|_)seconds|tokens_per_second|^environment$|^peak_memory_bytes$|^out$|^folder$|^resume$")
GROWING = ("results.json", "results.csv", "results.md")  # of collections: rewritten as runs end


@dataclass(frozen=True)
class Job:
    """One command: its words, how its files end, and whether it makes many runs."""

    name: str
    words: Callable[[Path], list[str]]  # for an output folder
    collection: bool = False
    resume: tuple[str, ...] = ("--resume",)

    def argv(self, out: Path, *, again: bool = False) -> list[str]:
        return [*self.words(out), "--quiet", *(self.resume if again else ())]


@dataclass
class Place:
    """The tiny workspace and the references: each job's own folder, as an uninterrupted run leaves it."""

    root: Path
    space: ws.Workspace
    jobs: dict[str, Job] = field(default_factory=dict)
    references: dict[str, Path] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def make_jobs(place: Place) -> dict[str, Job]:
    """Six commands, the training ones in more than one form."""
    space, root = place.space, place.root
    base = {"sae": space.sae, "data": space.data, **ws.COMMON}
    lora = {**base, **SHORT, "rank": 4, "lr": 1e-2, "dropout": 0.1}

    def words(command: str, options: dict[str, Any]) -> Callable[[Path], list[str]]:
        return lambda out: [command, str(space.model), *ws.as_flags({**options, "out": out})]

    sae = {"data": space.data, **ws.COMMON, "hookpoint": "layers.1.resid_post", "d_sae": ws.D_SAE, "k": ws.K}
    sae |= {"tokens": 48 * ws.CONTEXT, "batch_tokens": 64, "batch_rows": 4, "eval_tokens": 4 * ws.CONTEXT, **OFTEN}
    sweep, race = _sweep_recipe(root / "sweep.yaml", space), _compare_recipe(root / "compare.yaml", space)
    jobs = [
        Job("adapt", words("adapt", lora)),
        Job("adapt lora+sae", words("adapt", {**lora, "method": "lora+sae"})),
        Job("finetune-sae", words("finetune-sae", {**base, **SHORT, "lr": 1e-3})),
        Job("train-sae", words("train-sae", sae)),
        Job("train-sae, two", words("train-sae", {**sae, "variant": ["k=4", "k=8"]})),
        Job("sweep", lambda out: ["sweep", str(sweep), "--out", str(out), "--save-adapters"], collection=True),
        Job("compare", lambda out: ["compare", str(race), "--out", str(out)], collection=True),
        Job(
            "evaluate --parts",
            lambda out: [
                *("evaluate", "--adapter", str(place.references["adapt"]), "--out", str(out), "--device", "cpu"),
                *("--parts", "loss", "tokens", "drift", "faithfulness", "--ablation-tokens", str(4 * ws.CONTEXT)),
            ],
            resume=(),
        ),
    ]
    return {job.name: job for job in jobs}


def _sweep_recipe(path: Path, space: ws.Workspace) -> Path:
    base = {k: v for k, v in {**ws.COMMON, **SHORT}.items() if k != "history_points"}
    base |= {"model": str(space.model), "sae": [str(space.sae)], "data": str(space.data), "lr": 1e-2}
    recipe = {"title": "r", "base": {**base, "tokens": 16 * ws.CONTEXT}, "grid": {"rank": [1, 4], "seed": [0, 1]}}
    path.write_text(yaml.safe_dump(recipe))
    return path


def _compare_recipe(path: Path, space: ws.Workspace) -> Path:
    sae = {"hookpoint": ["layers.1.resid_post"], "d_sae": ws.D_SAE, "k": ws.K, "batch_rows": 8, "batch_tokens": 64}
    base = {**ws.COMMON, "model": str(space.model), "data": str(space.data), "eval_tokens": 4 * ws.CONTEXT, **OFTEN}
    tune = {"tokens": 4 * ws.CONTEXT, "eval_tokens": 4 * ws.CONTEXT}
    methods = {"lora": {"from": "local", "rank": 4, "tokens": 8 * ws.CONTEXT, "lr": [1e-4, 1e-2]}}
    methods["linear"] = {"method": "linear", "from": "local@1.0", "rank": 4, "tokens": 8 * ws.CONTEXT}
    saes = {"local": {**sae, "tokens": 32 * ws.CONTEXT, "checkpoints": [0.5, 1.0]}}
    recipe = {"title": "c", "base": base, "seeds": [0], "evaluations": 2, "tune": tune, "saes": saes}
    path.write_text(yaml.safe_dump({**recipe, "methods": methods}, sort_keys=False))
    return path


def left(out: Path) -> dict[str, Path]:
    """Every file below a folder that bears its own name, by its path within."""
    if not out.is_dir():
        return {}
    found = {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if MARK not in name}


def content(path: Path, out: Path) -> Any:
    """What a file says, time and machine aside; for pictures and text only whether it is whole.

    Raises:
        ValueError: it is not whole.
    """
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.suffix == ".png":
        _must(path.read_bytes().endswith(b"IEND\xaeB`\x82"), path)
        return None
    if path.suffix == ".svg":
        _must(path.read_text().rstrip().endswith("</svg>"), path)
        return None
    text = path.read_text().replace(str(out), "OUT")
    if path.suffix == ".json":
        return _steady(json.loads(text))
    if path.suffix == ".jsonl":
        return [_steady(json.loads(line)) for line in text.splitlines()]
    if path.suffix == ".yaml":
        return _steady(yaml.safe_load(text))
    _must(bool(text.strip()), path)
    return None


def differs(out: Path, reference: Path, names: Iterator[str] | list[str]) -> list[str]:
    """Files, of these, that are not what the reference's are; each with the reason."""
    ours, theirs = left(out), left(reference)
    told = []
    for name in names:
        if name not in theirs:
            told.append(f"{name}: the reference has no such file")
            continue
        try:
            same = content(ours[name], out) == content(theirs[name], reference)
        except Exception as error:  # whatever a half-written file makes a reader raise
            told.append(f"{name}: half-written ({type(error).__name__}: {' '.join(str(error).split())[:120]})")
        else:
            told += [] if same else [f"{name}: another content"]
    return told


def settled(name: str, job: Job) -> bool:
    """Whether a file, once it is there under its name, is to be the reference's: not a log, table or picture."""
    path = Path(name)
    if path.name.startswith("metrics") or "checkpoints" in path.parts or "work" in path.parts:
        return False
    if job.collection and (name in GROWING or "groups" in path.parts):
        return False
    return path.suffix in (".json", ".safetensors", ".yaml")


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(each) for key, each in value.items() if not VOLATILE.search(str(key))}
    return [_steady(each) for each in value] if isinstance(value, list) else value


def _tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {name: (str(array.dtype), list(array.shape), array.tobytes()) for name, array in arrays.items()}


def _must(whole: bool, path: Path) -> None:
    if not whole:
        raise ValueError(f"{path.name} is not whole")
