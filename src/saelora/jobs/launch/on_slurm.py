"""Jobs of SLURM, or processes of this machine, by submitit."""

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from saelora.config import check_keys
from saelora.errors import InputError, on_one_line
from saelora.files import writing
from saelora.jobs.launch.worker import run_command

_PAUSE = 20.0  # seconds between two questions to SLURM
_FOREVER = 525_600  # minutes
_ONE = ("nodes", "tasks_per_node", "gpus_per_node")  # of these, a job can use one
_OVER = {"CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}
_OVER |= {"PREEMPTED", "REVOKED", "GONE"}


class SubmititLauncher:
    """SLURM, or with cluster=local processes of this machine.

    Args:
        values: options of submitit's executors, SLURM's with or without their ``slurm_``; ``sbatch`` holds others.
        folder: for submitit's own files.

    Raises:
        InputError: no submitit, no SLURM, or options that they do not know.
    """

    def __init__(self, values: dict[str, Any], folder: Path):
        try:
            import submitit
        except ImportError:
            raise InputError('--launcher submitit needs submitit: pip install "saelora[slurm]"') from None
        self.local = _cluster(values) == "local"
        options = _options(submitit, {key: value for key, value in values.items() if key != "cluster"})
        if not self.local and not {"timeout_min", "slurm_time"} & options.keys():
            raise InputError("a job of SLURM needs a time limit: give --launcher-options timeout_min=MINUTES")
        self.place = "processes of this machine" if self.local else "SLURM"
        self.at_once = 1 if self.local else None
        self._submitit, self._folder, self._values = submitit, folder.resolve(), options
        self._jobs: dict[str, Any] = {}
        self._since: dict[str, float] = {}  # when each was given
        self._asked, self._states = float("-inf"), dict[str, str]()
        self._executor: Any = None

    def submit(self, words: tuple[str, ...], log: Path, code_file: Path) -> str:
        """Raises InputError where SLURM refuses the job."""
        try:
            if self._executor is None:
                self._executor = self._submitit.AutoExecutor(self._folder, cluster="local" if self.local else "slurm")
                defaults = {"name": "saelora", "timeout_min": _FOREVER}
                self._executor.update_parameters(**{**defaults, **self._values})
            with _stderr_to(self._folder / "said"):
                job = self._executor.submit(run_command, list(words), str(Path.cwd()), str(log), str(code_file), {})
        except (self._submitit.core.utils.FailedJobError, AssertionError, ValueError, TypeError, OSError) as error:
            raise InputError(f"{self.place} takes no such job: {on_one_line(error)}") from None
        self._jobs[job.job_id], self._since[job.job_id] = job, time.monotonic()
        return str(job.job_id)

    def ended(self, number: str) -> str | None:
        """SLURM's state of a job that is over, GONE where it has forgotten it; of a local process submitit's."""
        if self.local:
            job = self._jobs[number]
            return str(job.state) if job.done() else None
        self._ask()
        if self._asked < self._since.get(number, 0.0):
            return None
        state = self._states.get(number, "GONE")
        return state if state in _OVER else None

    def still_there(self, number: str) -> bool:
        """A local process is not asked for: it holds the locks of what it does, so that another one waits for it."""
        if self.local:
            return False
        self._ask()
        return self.ended(number) is None

    def _ask(self) -> None:
        """The states of all jobs of this user, seldom: squeue, unlike sacct, is there on every cluster."""
        if time.monotonic() - self._asked < _PAUSE:
            return
        command = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--states=all", "--format=%A %T"]
        now = time.monotonic()
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0:  # else the controller is busy or away, and is asked again
            self._asked = now
            self._states = dict(line.split() for line in found.stdout.splitlines())

    def leave(self, numbers: list[str]) -> str:
        """SLURM's jobs go on; processes of this machine are stopped."""
        if not self.local:
            shown = " ".join(numbers)
            return "the jobs go on: repeat the command with --resume to wait for them again" + (
                f", or stop them: scancel {shown}" if shown else ""
            )
        for number in numbers:
            self._jobs[number].cancel()
        return "jobs are stopped and save what they had begun; to go on, repeat the command with --resume"

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def _stderr_to(file: Path) -> Iterator[None]:
    """What is started in here writes there: sbatch, which submitit quotes, and on Ctrl-C submitit's own processes."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        out = file.open("a")
    before = os.dup(2)
    with out, redirect_stderr(out):
        os.dup2(out.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)


def _cluster(values: dict[str, Any]) -> str:
    cluster = values.get("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise InputError(f"--launcher-options cluster is {cluster!r}, expected slurm or local")
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError(
            "there is no SLURM here (no sbatch): start this where there is one, or give --launcher-options "
            "cluster=local for processes of this machine"
        )
    return str(cluster)


def _options(submitit: Any, values: dict[str, Any]) -> dict[str, Any]:
    """As submitit's AutoExecutor takes them."""
    general = submitit.AutoExecutor._valid_parameters()
    slurm = submitit.SlurmExecutor._valid_parameters()
    plain = {key.removeprefix("slurm_"): value for key, value in values.items()}
    check_keys(plain, {*general, *slurm, "sbatch"} - {"map_count"}, "--launcher-options")
    for key in _ONE:
        if plain.get(key, 1) not in (0, 1):
            raise InputError(f"--launcher-options {key}={plain[key]}: a job is one process and uses one GPU, so give 1")
    if "sbatch" in plain:
        if not isinstance(plain["sbatch"], dict):
            raise InputError("--launcher-options sbatch: expected a mapping, such as 'sbatch={reservation: mine}'")
        plain["additional_parameters"] = {**plain.get("additional_parameters", {}), **plain.pop("sbatch")}
    for key in ("setup", "teardown", "srun_args"):
        if isinstance(plain.get(key), str):
            plain[key] = [plain[key]]
    return {key if key in general else f"slurm_{key}": value for key, value in plain.items()}
