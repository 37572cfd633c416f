"""Inputs that are wrong: each case is drawn from the grammar, run in a fork, and has to be refused in one line."""

import importlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import workspace as ws
from reliable import forks, grammar
from reliable.work import OFTEN, Place, _compare_recipe, _sweep_recipe
from reliable.writers import model_gguf, sae_folders

TINY = {"tokens": 4 * ws.CONTEXT, "eval_tokens": 2 * ws.CONTEXT, "history_points": 1, **OFTEN}
SAE_TINY = {"hookpoint": "layers.1.resid_post", "d_sae": ws.D_SAE, "k": ws.K, "batch_tokens": 64}
# how many of a hundred cases are of each kind
KINDS = {"options": 40, "recipes": 14, "SAE folders": 16, "models": 7, "GGUF": 7, "adapters": 8, "text": 8}
AS_PROCESS = 100  # every so many-th case is run by a real process, with all its imports
Words = list[str]


class Inputs:
    """Draws and runs cases. A case is (words of the command, whether it must be refused)."""

    def __init__(self, place: Place):
        self.place, self.space = place, place.space
        self.area = place.root / "inputs"
        self.good = place.root / "good"
        self.draw = random.Random()
        self.kinds = [kind for kind, share in KINDS.items() for _ in range(share)]
        if not (self.good / "run" / "results.json").exists():
            self._make()

    def _make(self) -> None:
        """What cases spoil copies of: SAE folders of every format, a GGUF file, a finished run."""
        shutil.rmtree(self.good, ignore_errors=True)
        self.good.mkdir()
        sae_folders(self.good / "saes", ws.D_MODEL, ws.D_SAE, ws.K)
        model_gguf(self.good / "tiny.gguf")
        ended = forks.run(self._adapt(out=self.good / "run"), self.place.root / "scratch")
        if ended.code != 0:
            raise RuntimeError(f"a good run does not end well: {ended.err[-500:]}")

    def case(self, seed: str, number: int) -> tuple[str, bool, list[tuple[str, str]]]:
        """Run one case; returns its kind, whether it was refused, and what was wrong with how it ended."""
        self.draw = random.Random(seed)
        shutil.rmtree(self.area, ignore_errors=True)
        self.area.mkdir()
        kind = self.draw.choice(self.kinds)
        make: Callable[[], tuple[Words, bool]] = getattr(self, "_" + kind.split()[0].lower())
        words, must = make()
        before = ws.files_in(self.area)
        words = [*words, "--quiet"] if "--quiet" not in words else words
        ended = self._as_process(words) if number % AS_PROCESS == 99 else self._as_fork(words)
        faults = forks.complaint(ended) if must or ended.code != 0 else []
        if ended.code != 0:
            after = ws.files_in(self.area)
            after = {name: data for name, data in after.items() if name not in before or before[name] != data}
            faults += [("written", f"{name} is there after a refusal") for name in after]
        shown = " ".join(words).replace(str(self.place.root), "ROOT")
        return kind, ended.code != 0, [(fault, f"{said}  [saelora {shown}]") for fault, said in faults]

    def _as_fork(self, words: Words) -> forks.Ended:
        return forks.run(words, self.place.root / "scratch", limit=240, setup=lambda: os.chdir(self.area))

    def _as_process(self, words: Words) -> forks.Ended:
        command = [sys.executable, "-m", "saelora", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=self.area)
        return forks.Ended(done.returncode, done.stdout, done.stderr, 0.0)

    def _adapt(self, model: Any = None, command: str = "adapt", **options: Any) -> Words:
        own = {"rank": 4} if command == "adapt" else {}
        given = {"sae": self.space.sae, "data": self.space.data, "out": self.area / "out", **ws.COMMON, **TINY, **own}
        return [command, str(model or self.space.model), *ws.as_flags({**given, **options}), "--quiet"]

    def _train_sae(self, **options: Any) -> Words:
        given = {"data": self.space.data, "out": self.area / "out", **ws.COMMON, **TINY, **SAE_TINY}
        del given["history_points"]
        return ["train-sae", str(self.space.model), *ws.as_flags({**given, **options})]

    def _evaluate(self, adapter: Path, **options: Any) -> Words:
        given = {"adapter": adapter, "out": self.area / "out.json", "eval_tokens": 2 * ws.CONTEXT, **options}
        return ["evaluate", *ws.as_flags(given)]

    # each kind's cases

    def _options(self) -> tuple[Words, bool]:
        command = self.draw.choice(["adapt", "adapt", "adapt", "finetune-sae", "train-sae", "train-sae", "evaluate"])
        module = importlib.import_module(f"saelora.jobs.{command.replace('-', '_')}")
        known = {*module.Config.model_fields}
        words = self._good(command)
        if self.draw.random() < 0.2:
            flag = grammar.misspelt(self.draw, known | {"config", "json"})
            return [*words, flag, self.draw.choice(["1", "x", "--json"])], True
        name = self.draw.choice(sorted((grammar.BELOW.keys() | grammar.WORDS.keys()) & known))
        value = grammar.spoilt_value(self.draw, name)
        if name == "hookpoint" and command != "train-sae" and self.draw.random() < 0.2:
            return [*words, "--hookpoint", "layers.1.resid_post", "--hookpoint", "layers.2.resid_post"], True
        flag = "--" + name.replace("_", "-")
        while flag in words:
            at = words.index(flag)
            del words[at : at + 2]
        return [*words, f"{flag}={value}"], True

    def _good(self, command: str) -> Words:
        if command == "train-sae":
            return self._train_sae()
        if command == "evaluate":
            return self._evaluate(self.good / "run")
        return self._adapt(command=command)

    def _recipes(self) -> tuple[Words, bool]:
        command = self.draw.choice(["sweep", "compare", "adapt"])
        path = self.area / "recipe.yaml"
        if command == "adapt":
            options = {"sae": [str(self.space.sae)], "data": str(self.space.data), **ws.COMMON, **TINY, "rank": 4}
            path.write_text(yaml.safe_dump({"model": str(self.space.model), **options}))
            words = ["adapt", "--config", str(path), "--out", str(self.area / "out")]
        else:
            (_sweep_recipe if command == "sweep" else _compare_recipe)(path, self.space)
            words = [command, str(path), "--out", str(self.area / "out")]
        deed = self.draw.random()
        if deed < 0.15:
            (grammar.cut if deed < 0.05 else grammar.break_text)(self.draw, path)
            return words, False
        if deed < 0.3:
            path.unlink()
            return words, True
        if deed < 0.45 and command != "adapt":
            change = self.draw.choice(["tokens", "=1", "nokey=1", "base.x.y=1", "rank=[", "grid.rank=4", "seeds=x.y="])
            return [*words, "--set", change], change not in ("rank=[", "seeds=x.y=") or command == "sweep"
        if deed < 0.7:
            return words, self._wrong_option(path, command)
        path.write_text(yaml.safe_dump(grammar.spoilt_json(self.draw, yaml.safe_load(path.read_text()))))
        return words, False

    def _wrong_option(self, path: Path, command: str) -> bool:
        """An option under ``base`` that cannot be; returns True, since it must be refused."""
        loaded = yaml.safe_load(path.read_text())
        target = loaded if command == "adapt" else loaded["base"]
        if self.draw.random() < 0.3:
            known = {*importlib.import_module("saelora.jobs.adapt").Config.model_fields}
            target[grammar.misspelt(self.draw, known).strip("-")] = 1
        else:
            name = self.draw.choice(["context", "batch_rows", "validation_fraction", "device", "exempt", "dtype"])
            value = grammar.spoilt_value(self.draw, name)
            target[name] = [value] if name == "exempt" else value
        path.write_text(yaml.safe_dump(loaded))
        return True

    def _sae(self) -> tuple[Words, bool]:
        folder = self.draw.choice(sorted((self.good / "saes").iterdir()))
        copied = Path(shutil.copytree(folder, self.area / folder.name))
        must = self._spoil(copied)
        return self._adapt(sae=copied, hookpoint="layers.1.resid_post"), must

    def _models(self) -> tuple[Words, bool]:
        copied = Path(shutil.copytree(self.space.model, self.area / "model"))
        must = self._spoil(copied, loose=("generation_config.json", "tokenizer_config.json"))
        return self._adapt(copied), must

    def _spoil(self, folder: Path, loose: tuple[str, ...] = ()) -> bool:
        """Spoil one file of a folder; returns whether that cannot go well, whatever the reader makes of it.

        ``loose``: files that a reader can do without.
        """
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        path = self.draw.choice(files)
        strict = path.suffix in (".safetensors", ".npz", ".pt")
        deed = self.draw.choice(["cut", "noise", "flip", "remove", "json", "json", "folder"])
        if deed == "json" and path.suffix == ".json":
            grammar.respell_json(self.draw, path)
            return False
        if deed == "remove":
            path.unlink()
        elif deed == "folder":
            path.unlink()
            path.mkdir()
        elif deed == "flip":
            grammar.flip(self.draw, path)
            return False
        else:
            (grammar.noise if deed == "noise" else grammar.cut)(self.draw, path)
        return strict and path.name not in loose

    def _gguf(self) -> tuple[Words, bool]:
        path = Path(shutil.copy(self.good / "tiny.gguf", self.area / "tiny.gguf"))
        deed = self.draw.choice(["cut", "noise", "flip", "flip", "count", "text", "folder"])
        if deed == "count":  # version, number of tensors, number of keys
            data = bytearray(path.read_bytes())
            at, size = self.draw.choice([(4, 4), (8, 8), (16, 8)])
            data[at : at + size] = self.draw.choice([0, 1, 2**31, 2**32 - 1]).to_bytes(8, "little")[:size]
            path.write_bytes(bytes(data))
        elif deed == "text":
            path.write_text("GGUF is not in here")
        elif deed == "folder":
            path.unlink()
            path.mkdir()
        else:
            {"cut": grammar.cut, "noise": grammar.noise, "flip": grammar.flip}[deed](self.draw, path)
        return self._adapt(path), deed != "flip" and deed != "count"

    def _adapters(self) -> tuple[Words, bool]:
        copied = Path(shutil.copytree(self.good / "run", self.area / "run"))
        needed = ("saelora.json", "adapter_config.json", "adapter_model.safetensors")
        for path in copied.iterdir():
            if path.name not in needed:
                path.unlink()
        path = copied / self.draw.choice(needed)
        deed = self.draw.choice(["cut", "noise", "json", "json", "json", "remove", "folder"])
        must = path.name != "saelora.json"
        if deed == "json" and path.suffix == ".json":
            grammar.respell_json(self.draw, path)
            must = False
        elif deed in ("remove", "folder"):
            path.unlink()
            if deed == "folder":
                path.mkdir()
        else:
            (grammar.noise if deed == "noise" else grammar.cut)(self.draw, path)
            must = True
        return self._evaluate(copied), must

    def _text(self) -> tuple[Words, bool]:
        data = self.area / self.draw.choice(["t.txt", "t.jsonl", "t.parquet", "t.csv", "folder"])
        if data.name == "folder":
            data.mkdir()
            if self.draw.random() < 0.5:
                (data / "x.bin").write_bytes(b"x")
        else:
            data.write_bytes(self._text_bytes(data.suffix))
        column = {"text_column": self.draw.choice(["txet", "", "meta"])} if self.draw.random() < 0.2 else {}
        words = self._adapt(data=data, **column)
        return (words, True) if self.draw.random() < 0.7 else (self._train_sae(data=data, **column), True)

    def _text_bytes(self, suffix: str) -> bytes:
        few = ["", " \n\t\n", "a few words", "\x00\x01\x02", "é" * 3]
        if suffix == ".jsonl":
            lines = ['{"text": 3}', '{"words": "a"}', "[]", '{"text": "a"', '"text"', '{"text": null}', '{"text": [1]}']
            return "\n".join(self.draw.choices([*lines, *few], k=self.draw.randint(1, 4))).encode()
        if suffix == ".parquet":
            return self.draw.choice([b"PAR1", b"PAR1" + bytes(20) + b"PAR1", b"", self.draw.randbytes(64)])
        return self.draw.choice([*(text.encode() for text in few), b"\xff\xfe\xfd", self.draw.randbytes(9)])
