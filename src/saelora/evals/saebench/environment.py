"""SAEBench's own virtual environment: it needs numpy < 2 and datasets < 4, which this package does not run on."""

import hashlib
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

from saelora.errors import InputError
from saelora.models.assets import cache_dir

READY = ".ready"
_CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def requirements() -> Path:
    """The pinned requirements, a file of this package."""
    return Path(str(resources.files("saelora"))) / "package_data" / "saebench" / "requirements.txt"


def environment_folder() -> Path:
    """Where the environment is: one for each state of the requirements and each Python."""
    text = f"{sys.version_info[:2]}{requirements().read_text()}"
    return cache_dir() / "saebench" / f"environment-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def commands(folder: Path, has_gpu: bool) -> list[list[str]]:
    """What makes the environment, in order: Python, PyTorch, all else.

    Without an NVIDIA GPU, PyTorch's CPU wheel serves: PyPI's own on Linux brings gigabytes of CUDA with it, as its
    dependencies, so that it is then installed without them. The pins are complete, and so is all else.
    """
    pip = [str(python_of(folder)), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    torch = next(line for line in requirements().read_text().splitlines() if line.startswith("torch=="))
    cpu_only = ["--no-deps", "--retries", "0", "--extra-index-url", _CPU_WHEELS]
    return [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, *([] if has_gpu else cpu_only), torch],
        [*pip, "--no-deps", "-r", str(requirements())],
    ]


def ensure(log: Path) -> Path:
    """The environment's python, made on first use (minutes, and 2 GB or more of disk).

    Raises:
        InputError: it cannot be made.
    """
    folder = environment_folder()
    if (folder / READY).is_file():
        return python_of(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as out:
        for command in commands(folder, has_gpu=shutil.which("nvidia-smi") is not None):
            out.write(f"$ {' '.join(command)}\n")
            out.flush()
            if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode:
                raise InputError(
                    f"SAEBench's environment cannot be made in {folder} ({last_line(log)}; see {log}): check the "
                    f"network, or install {requirements()} yourself and name its python with --saebench-python"
                )
    (folder / READY).touch()
    return python_of(folder)


def check_python(python: str) -> Path:
    """The python of an environment that the user names.

    Raises:
        InputError: it is none, or SAEBench is not installed in it.
    """
    found = shutil.which(python)
    if found is None:
        raise InputError(f"--saebench-python {python} is no program: name the python of an environment with SAEBench")
    asked = [found, "-c", "import importlib.metadata as m; print(m.version('sae-bench'))"]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            f"--saebench-python {python} has no sae-bench: {found} -m pip install --no-deps -r {requirements()}"
        )
    return Path(found)


def version_in(python: Path) -> str:
    """SAEBench's version in an environment."""
    asked = [str(python), "-c", "import importlib.metadata as m; print(m.version('sae-bench'))"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def last_line(log: Path) -> str:
    """The last line of a log that says something, shortened."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
