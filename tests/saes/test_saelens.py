"""SAELens where it is installed, where it is another version, and where it is not."""

from importlib import metadata

import pytest

from saelora.errors import InputError
from saelora.saes import saelens

WITHOUT = pytest.mark.usefixtures("without_saelens")


@pytest.fixture
def without_saelens(monkeypatch: pytest.MonkeyPatch):
    """As where it is not installed: what looks for it finds nothing."""

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    saelens.releases.cache_clear()
    yield
    saelens.releases.cache_clear()


def test_the_registry_kept_is_that_of_its_version() -> None:
    if saelens.saelens_version() != saelens.KEPT:
        pytest.skip(f"SAELens {saelens.saelens_version()} is installed, the registry kept is of {saelens.KEPT}")
    saelens.releases.cache_clear()
    kept, installed = saelens.releases(), saelens.installed()
    assert list(kept) == list(installed)
    assert kept == installed


def test_another_version_of_saelens_has_its_own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saelens, "KEPT", "0")
    saelens.releases.cache_clear()
    assert saelens.releases() == saelens.installed()
    saelens.releases.cache_clear()


@WITHOUT
def test_without_saelens_the_registry_kept_serves() -> None:
    from saelora.saes import registry

    entry = registry.find("gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical")
    assert entry is not None
    assert (entry.repo, entry.readable) == ("google/gemma-scope-2b-pt-res", True)
    jb = registry.registered("jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre")
    assert jb is not None
    assert jb.overrides["model_from_pretrained_kwargs"] == {"center_writing_weights": True}


@WITHOUT
def test_what_saelens_alone_does_says_how_to_get_it() -> None:
    from saelora.jobs.train_sae import Config, check

    with pytest.raises(InputError, match=r"training SAEs needs SAELens: pip install \"saelora\[saelens\]\""):
        check(Config(model="m", hookpoint=["layers.0.resid_post"], data="d", out="o"))


@WITHOUT
def test_a_manifest_says_that_saelens_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from saelora import manifest

    def version(name: str) -> str:
        if name == "sae-lens":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(manifest.metadata, "version", version)
    assert manifest.environment().versions["sae-lens"] is None
