"""What pip installs from a wheel is whole, and its command runs."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("package")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel made from the sdist, as PyPI's would be. setuptools of this environment builds it: no network."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the package; pip install setuptools>=77")
    out = tmp_path_factory.mktemp("package")
    build = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    copy = out / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    files = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", build, "build_sdist", str(out)], cwd=copy, check=True, capture_output=True)
    (sdist,) = out.glob("*.tar.gz")
    subprocess.run([sys.executable, "-m", "tarfile", "-e", str(sdist), str(out)], check=True)
    unpacked = out / sdist.name.removesuffix(".tar.gz")
    subprocess.run(
        [sys.executable, "-c", build, "build_wheel", str(out)], cwd=unpacked, check=True, capture_output=True
    )
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    files = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = {name.removeprefix("src/") for name in files.splitlines()}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert any("package_data" in name for name in wanted)
    assert wanted <= held, f"the wheel lacks {sorted(wanted - held)}"


def test_the_command_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, as pipx and uvx make one; what it depends on is lent from here."""
    venv.create(tmp_path / "env", with_pip=False)
    python = next((tmp_path / "env").glob("bin/python"))
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as held:
        held.extractall(site)
    lent = Path(pytest.__file__).parents[1]
    code = f"import sys; sys.path.append({str(lent)!r}); from saelora import cli; print(cli.__file__); cli.main()"
    done = subprocess.run(
        [python, "-c", code, "adapt", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": ""},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout
    assert "--sae" in done.stdout
    entry = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("entry_points.txt"))
    assert b"saelora = saelora.cli:main" in zipfile.ZipFile(wheel).read(entry)
