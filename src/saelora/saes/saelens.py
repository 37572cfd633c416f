"""SAELens itself, where it is installed: its version, and its registry of released SAEs, which is kept here too."""

import json
import lzma
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

from saelora.errors import InputError
from saelora.manifest import version_of

KEPT = "6.54.12"  # the version whose registry package_data has, and whose configurations are written
FIRST_WITH_METADATA = Version(
    "6.0.0-rc.0"
)  # whose configurations keep where an SAE comes from in an entry of their own
AT_RUN_TIME = ("constant_norm_rescale", "layer_norm")  # normalisations whose scale goes from encoding to decoding
NORMALISATIONS = ("none", "expected_average_only_in", *AT_RUN_TIME, "covariance_whitening")
_RELEASE = ("repo_id", "conversion_func", "config_overrides")
_ENTRY = ("id", "path", "norm_scaling_factor")


def unwrapped(sae: Any) -> Any:
    """The SAE in its wrappers, which are not asked themselves: they may be in the middle of something."""
    while not hasattr(sae, "cfg") and hasattr(sae, "sae"):
        sae = sae.sae
    return sae


def configuration_of(sae: Any) -> Any:
    """An SAE's own ``cfg``, also of one in wrappers; None where it has none."""
    return getattr(unwrapped(sae), "cfg", None)


def saelens_version() -> str:
    """The version of SAELens that is installed, or the one whose files are written here."""
    return version_of("sae-lens") or KEPT


def is_installed() -> bool:
    """Whether SAELens is."""
    return version_of("sae-lens") is not None


def need_saelens(what: str) -> None:
    """Raise InputError where SAELens is not installed; ``what`` needs it."""
    if not is_installed():
        raise InputError(f'{what} needs SAELens: pip install "saelora[saelens]"')


@cache
def releases() -> dict[str, dict[str, Any]]:
    """SAELens' registry by release: repo_id, conversion_func, config_overrides, saes (id, path, norm_scaling_factor).

    The installed SAELens' own, or the one kept here where it is the same or there is none.
    """
    if saelens_version() == KEPT:
        packed = resources.files("saelora") / "package_data" / "saelens" / "registry.json.xz"
        kept: dict[str, dict[str, Any]] = json.loads(lzma.decompress(packed.read_bytes()))
        return kept
    return installed()


def installed() -> dict[str, dict[str, Any]]:
    """The registry of the SAELens that is installed, read without importing it.

    Raises:
        InputError: there is none.
    """
    spec = find_spec("sae_lens")
    if spec is None or not spec.submodule_search_locations:
        raise InputError('SAELens is not installed: pip install "saelora[saelens]"')
    path = Path(spec.submodule_search_locations[0]) / "pretrained_saes.yaml"
    with path.open(encoding="utf-8") as file:
        whole = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {
        name: {
            **{key: release[key] for key in _RELEASE if release.get(key) is not None},
            "saes": [{key: sae[key] for key in _ENTRY if sae.get(key) is not None} for sae in release["saes"]],
        }
        for name, release in whole.items()
    }


def pack() -> bytes:
    """The installed SAELens' registry as it is kept: written to package_data by ``.ci/registry.py``."""
    return lzma.compress(json.dumps(installed(), separators=(",", ":")).encode(), preset=9)
