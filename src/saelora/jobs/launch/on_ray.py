"""Jobs of a Ray cluster, or of a Ray that is started here for as long as the command takes."""

import os
from pathlib import Path
from typing import Any

from saelora.config import check_keys
from saelora.errors import InputError, first_line, on_one_line
from saelora.jobs.launch.worker import run_command

_TASK = ("num_cpus", "num_gpus", "memory", "resources")  # of each job
_STORE = 80 * 2**20  # bytes: nothing goes through Ray's object store, and less is refused
_PASSED = ("SAELORA_CACHE", "SAELORA_MEMORY", "SAELORA_KL_HEAD", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
_SAVING = 60.0  # seconds that jobs which are stopped may take to save


class RayLauncher:
    """The cluster of RAY_ADDRESS or ``address``, else one that runs on this machine, else Ray started here.

    Args:
        values: num_cpus, num_gpus, memory (bytes), resources ({name: amount}) of each job, and address.

    Raises:
        InputError: no Ray, an option that it does not know, or no such cluster.
    """

    at_once: int | None = None

    def __init__(self, values: dict[str, Any]):
        try:
            import ray
        except ImportError:
            raise InputError('--launcher ray needs Ray: pip install "saelora[ray]"') from None
        check_keys(values, (*_TASK, "address"), "--launcher-options")
        task = {key: values[key] for key in _TASK if key in values}
        self._ray: Any = ray  # parts of it have no annotations
        self._ours = not ray.is_initialized()
        self._refs: dict[str, Any] = {}
        try:
            self._remote = ray.remote(**{"num_cpus": 1, **task, "max_retries": 0})(run_command)
        except (ValueError, TypeError) as error:
            raise InputError(f"--launcher-options: {on_one_line(error)}") from None
        self.place = self._connect(values.get("address") or os.environ.get("RAY_ADDRESS"))
        self._check_room({"CPU": task.get("num_cpus", 1), "GPU": task.get("num_gpus", 0), **task.get("resources", {})})

    def _connect(self, address: str | None) -> str:
        ray = self._ray
        said = {"log_to_driver": False, "logging_level": "error"}
        if self._ours:
            try:
                ray.init(address=address or "auto", **said)
            except (ConnectionError, ValueError, RuntimeError) as error:
                if address:
                    raise InputError(f"no Ray cluster answers at {address}: {on_one_line(error)}") from None
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to Ray's makers
                ray.init(address="local", include_dashboard=False, object_store_memory=_STORE, **said)
                return "Ray on this machine"
        return f"Ray at {address or ray.get_runtime_context().gcs_address}"

    def _check_room(self, wanted: dict[str, float]) -> None:
        there = self._ray.cluster_resources()
        for name, amount in wanted.items():
            if amount > there.get(name, 0):
                raise InputError(f"a job wants {amount:g} {name}, {self.place} has {there.get(name, 0):g} in all")

    def submit(self, words: tuple[str, ...], log: Path, code_file: Path) -> str:
        """Ray queues whatever it is given."""
        env = {key: os.environ[key] for key in _PASSED if key in os.environ}
        ref = self._remote.remote(list(words), str(Path.cwd()), str(log), str(code_file), env)
        number = str(ref.task_id().hex()[:12])
        self._refs[number] = ref
        return number

    def ended(self, number: str) -> str | None:
        """Which of Ray's errors a job ended with, if it did."""
        ready, _ = self._ray.wait([self._refs[number]], timeout=0)
        if not ready:
            return None
        try:
            self._ray.get(ready[0])
        except self._ray.exceptions.TaskCancelledError:
            return "CANCELLED"
        except self._ray.exceptions.RayError as error:
            return f"{type(error).__name__}: {first_line(error)}"
        return "finished"

    def still_there(self, number: str) -> bool:
        """Ray's tasks end with the command that gave them."""
        return False

    def leave(self, numbers: list[str]) -> str:
        """Jobs are stopped, since Ray ends them with this process."""
        refs = [self._refs[number] for number in numbers]
        for ref in refs:
            self._ray.cancel(ref)
        if refs and self._ray.wait(refs, num_returns=len(refs), timeout=_SAVING)[1]:
            return f"jobs were told to stop, some had not after {_SAVING:.0f} s; to go on, repeat with --resume"
        return "jobs are stopped, and saved what they had begun; to go on, repeat the command with --resume"

    def close(self) -> None:
        """End the connection, and with it a Ray that was started here."""
        if self._ours:
            self._ray.shutdown()
