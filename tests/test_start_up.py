"""Commands look at their options before they import what takes seconds."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saelora.cli import JOBS, USES

HEAVY = {
    "torch",
    "transformers",
    "sae_lens",
    "datasets",
    "peft",
    "accelerate",
    "matplotlib",
    "pandas",
    "submitit",
    "ray",
}
# of what loads a finished run, nothing imports these
ELSEWHERE = {"sae_lens", "datasets", "pyarrow", "matplotlib", "pandas", "sklearn", "gguf"}
ROOT = Path(__file__).parents[1]
# Runs pieces of code, each in a fork of an interpreter that has the command line imported and nothing else.
FORKS = f"""
import json, os, sys, tempfile, traceback
import saelora.cli
for line in sys.stdin:
    code, cwd = json.loads(line)
    said, found = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
    child = os.fork()
    if child == 0:
        os.chdir(cwd)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said.fileno(), 2)
        names = {{"code": 0, "__name__": "fresh"}}
        try:
            exec(code, names)
            json.dump([names["code"], sorted({HEAVY!r} & sys.modules.keys())], found)
            found.flush()
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(0)
    os.waitpid(child, 0)
    for file in (said, found):
        file.seek(0)
    print(json.dumps([found.read(), said.read()]), flush=True)
"""
Loaded = Callable[[str, Path], tuple[int, str, set[str]]]


@pytest.fixture(scope="module")
def loaded_by() -> Iterator[Loaded]:
    """Of code and the folder it runs in: its exit code, what was said on stderr, which of HEAVY are imported after it.

    The code leaves its exit code in ``code``.
    """
    with subprocess.Popen([sys.executable, "-c", FORKS], stdin=-1, stdout=-1, text=True) as forks:
        assert forks.stdin is not None
        assert forks.stdout is not None
        asked, told = forks.stdin, forks.stdout

        def run(code: str, cwd: Path) -> tuple[int, str, set[str]]:
            print(json.dumps([code, str(cwd)]), file=asked, flush=True)
            found, said = json.loads(told.readline())
            assert found, said
            exit_code, heavy = json.loads(found)
            return exit_code, said, set(heavy)

        yield run
        asked.close()


def main_with(*words: str) -> str:
    return f"""
from saelora.cli import main
try:
    code = main({list(words)!r})
except SystemExit as end:
    code = end.code or 0"""


@pytest.mark.parametrize("words", [("--help",), ("--version",), *((job, "--help") for job in JOBS)])
def test_help_imports_no_heavy_library(loaded_by: Loaded, words, tmp_path) -> None:
    assert loaded_by(main_with(*words), tmp_path) == (0, "", set())


def test_the_package_imports_no_heavy_library(loaded_by: Loaded, tmp_path) -> None:
    code = "import saelora, saelora.options, saelora.jobs.training_options\n" + "\n".join(
        f"import saelora.{'use' if job in USES else 'jobs'}.{job.replace('-', '_')}" for job in JOBS
    )
    assert loaded_by(code, tmp_path) == (0, "", set())


def test_what_makes_a_report_imports_no_heavy_library(loaded_by: Loaded, tmp_path) -> None:
    code = "import saelora.reporting.page, saelora.reporting.compare, saelora.reporting.sweep, saelora.reporting.card"
    assert loaded_by(code, tmp_path) == (0, "", set())


def test_what_loads_a_run_imports_no_library_that_a_run_in_use_does_without(loaded_by: Loaded, tmp_path) -> None:
    code = f"import sys, saelora\nsaelora.load\ncode = sorted({ELSEWHERE!r} & sys.modules.keys())"
    assert loaded_by(code, tmp_path)[0] == []


def test_the_collector_rests_while_what_loads_a_run_is_imported(loaded_by: Loaded, tmp_path) -> None:
    code = """
import gc, saelora
passes = []
gc.callbacks.append(lambda phase, info: passes.append(phase))
saelora.load
assert gc.isenabled()
code = len(passes)"""
    found, _, heavy = loaded_by(code, tmp_path)
    assert "torch" in heavy
    assert found < 20  # more than a thousand where it does not rest


BAD = {
    "unknown option": "adapt --rnak 3",
    "wrong kind": "adapt m --sae s --data d --out o --rank many",
    "not a choice": "evaluate m --sae s --data d --parts nothing",
    "no folder": "adapt m --sae s --data d",
    "folder in use": "adapt m --sae s --data d --out used",
    "out of range": "adapt m --sae s --data d --out o --warmup 2",
    "objective of another method": "adapt m --sae s --data d --out o --objective kl+mse",
    "option of another method": "adapt m --sae s --data d --out o --method linear --dropout 0.1",
    "option of another objective": "train-sae m --data d --out o --hookpoint layers.1 --objective e2e --passes 3",
    "option of another architecture": "train-sae m --data d --out o --hookpoint layers.1 --l1-coefficient 2",
    "option of another part": "evaluate m --sae s --data d --steering-n 3",
    "layers the wrong way round": "adapt m --sae s --data d --out o --placement layers:5-2",
    "no such device": "sweep {root}/recipes/smollm/rank.yaml --out o --set device=foo",
    "too short rows": "evaluate m --sae s --data d --context 1",
    "too few tokens": "train-sae m --data d --out o --hookpoint layers.1 --eval-tokens 1",
    "no such exemption": "finetune-sae m --sae s --data d --out o --exempt nose",
    "unknown tracker": "finetune-sae m --sae s --data d --out o --track paper",
    "sharding one process": "train-sae m --data d --out o --shard",
    "no hookpoint": "train-sae m --data d --out o",
    "bad hookpoint": "train-sae m --data d --out o --hookpoint layers.x",
    "bad variant": "train-sae m --data d --out o --hookpoint layers.1 --variant kk=3",
    "variant out of range": "train-sae m --data d --out o --hookpoint layers.1 --variant lr=5",
    "part without adapter": "evaluate m --sae s --data d --parts drift",
    "no such run": "evaluate --adapter nowhere",
    "no config file": "adapt --config nowhere.yaml",
    "no recipe": "sweep nowhere.yaml --out o",
    "unknown recipe key": "sweep {root}/recipes/smollm/rank.yaml --out o --set bsae.x=1",
    "no recipe option": "compare {root}/recipes/smollm/timing.yaml --out o --set rnak=1",
    "no such entry": "compare {root}/recipes/smollm/timing.yaml --out o --only nobody",
    "option of a launcher that is not named": "sweep {root}/recipes/smollm/rank.yaml --out o --launcher-jobs 2",
    "no option of a launcher": "sweep {root}/recipes/smollm/rank.yaml --out o --launcher ray --launcher-options moon",
    "no such point": "sweep {root}/recipes/smollm/rank.yaml --out o --only nobody",
    "no finished run": "report nowhere",
    "too few tokens of the demo": "demo --eval-tokens 511",
    "demo in use": "demo --out used",
    "nothing to generate from": "generate",
    "no prompt": "generate used",
    "no run to use": "generate used hello",
    "no such run to talk with": "chat nowhere",
    "pushed to no repository": "push used",
    "pushed to no owner": "push used name --dry-run",
    "no such run to push": "push nowhere me/name",
    "no finished run to push": "push used me/name --dry-run",
    "steered by nothing": "generate used hello --steer 3740",
    "steered in no way": "chat used --steer 3740=loud",
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_an_error_in_the_options_is_found_before_a_heavy_library_is_imported(loaded_by: Loaded, line, tmp_path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thing").touch()
    code, said, heavy = loaded_by(main_with(*line.format(root=ROOT).split()), tmp_path)
    assert (code, heavy) == (2, set())
    assert said.startswith("saelora: ") or "\nsaelora: " in said


FIRST = {
    "adapt": "adapt m --sae s --data d --out o",
    "finetune-sae": "finetune-sae m --sae s --data d --out o",
    "evaluate": "evaluate m --sae s --data d",
    "train-sae": "train-sae m --data d --out o --hookpoint layers.1",
    "sweep": "sweep {root}/recipes/smollm/rank.yaml --out o",
    "compare": "compare {root}/recipes/smollm/timing.yaml --out o",
    "demo": "demo --out o",
}


@pytest.mark.parametrize("line", FIRST.values(), ids=FIRST.keys())
def test_a_command_says_what_it_does_before_it_imports_a_heavy_library(loaded_by: Loaded, line, tmp_path) -> None:
    """The import of torch is made to fail: what has been said by then was said before."""
    code = (
        "import sys\n"
        "class Stop(BaseException): pass\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in {HEAVY!r}: raise Stop(name)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from saelora.cli import main\n"
        f"try: main({line.format(root=ROOT).split()!r})\n"
        "except Stop: code = 7"
    )
    stopped, said, _ = loaded_by(code, tmp_path)
    assert stopped == 7
    assert said.strip()
    assert "saelora: " not in said
