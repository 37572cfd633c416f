"""saelora push: a finished run to the Hugging Face Hub, from where load, generate and adapt --sae take it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelora.config import Configuration, configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.manifest import MANIFEST
from saelora.named import exists
from saelora.use.reference import find_run


class Config(Configuration):
    """Push"""

    ref: str | None = option(None, "the folder of a finished run (of adapt, finetune-sae, train-sae)", positional=True)
    repo: str | None = option(None, "owner/name of the repository, made where it is not there", positional=True)
    public: bool = option(False, "let everyone see it; a repository that this makes is private otherwise")
    dry_run: bool = option(False, "show each file, its size and the card; send nothing")
    revision: str | None = option(None, "branch to push to, made where it is not there; default: the main one")
    model: str | None = option(None, "where others find the run's model, if it lies in a local folder: owner/name")
    license: str | None = option(None, "of the card, as the hub writes licences: mit, apache-2.0, gemma; default: none")
    saes: bool = option(True, "send SAEs and transcoders that lie on this machine too; else others have to find them")
    quiet: bool = option(False, "say nothing but what is asked for")


def push(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Push a run: what was trained, manifest, results, evaluations, report and card, in one commit.

    Nothing else of the folder goes, and local paths are left out of what goes. What the repository holds already is not
    sent again.

    Returns:
        "repo", "url", "revision", "files" (path -> bytes), "left" (files of the folder that do not go), "notes",
        "card"; and unless it is a dry run "commit", "private", "changed", "removed".

    Raises:
        InputError: no finished run, no name of a repository, no login or rights, no network.
    """
    config = configured(Config, config, options)
    console = Console(quiet=config.quiet)
    from saelora.use.sharing import parcel, upload

    if not config.ref or not config.repo:
        raise InputError("push wants a run and a repository: saelora push REF owner/name")
    if not exists(config.ref):
        raise InputError(f"{config.ref[:200]} does not exist: expected the folder of a finished run")
    upload.check_repo(config.repo)
    if not config.dry_run:
        upload.check_login()
    _check_finished(Path(config.ref).expanduser())
    run = find_run(config.ref)
    console.say(f"reading {config.ref}")
    _check_same(run)
    found = parcel.packed(run, config.repo, config.model, config.saes)
    from saelora.use.sharing.card import card_of

    card = found.names.in_text(card_of(run, found, config.repo, config.license, config.revision).encode())
    files = sorted([*found.files, parcel.File(parcel.CARD, card)], key=lambda each: each.path)
    told = {
        "repo": config.repo,
        "url": _url(config.repo),
        "revision": config.revision,
        "files": {file.path: file.size for file in files},
        "left": found.left,
        "notes": found.notes,
        "card": card.decode(),
        "dry_run": config.dry_run,
    }
    if config.dry_run:
        return told
    console.say(f"pushing {len(files)} files, {_size(sum(file.size for file in files))}, to {config.repo}")
    if config.quiet:
        import huggingface_hub.utils

        huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]
    done = upload.upload(files, config.repo, public=config.public, revision=config.revision)
    if config.public and done.private:
        told["notes"] = [*found.notes, f"{config.repo} was private before and stays so: its settings change that."]
    return {**told, "commit": done.commit, "private": done.private, "changed": done.changed, "removed": done.removed}


def _check_finished(folder: Path) -> None:
    if folder.is_dir() and not (folder / MANIFEST).exists() and (folder / "checkpoints").is_dir():
        raise InputError(f"{folder} is not finished: go on with --resume, and push it then")


def _check_same(run: Any) -> None:
    """Refuse what was trained, where it is not what the run ended with.

    Raises:
        InputError: an adapter or a trained SAE has changed, or is missing.
    """
    if run.manifest is None:
        return
    import torch

    from saelora.jobs.recorded import adapter_now
    from saelora.jobs.student_folder import load_tuned_saes

    found, changed = adapter_now(str(run.folder), run.manifest, forced=True)
    if changed:
        raise InputError(
            f"the adapter in {run.ref} has changed since its run ended (fingerprint {run.manifest.adapter}, now "
            f"{found}), so that its figures are not of it: bring that one back, or train anew"
        )
    load_tuned_saes(run.folder, run.manifest.tuned_saes, torch.device("cpu"))


def _url(repo: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def _size(n: float) -> str:
    return f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n / 1e3:,.1f} kB"


def render(results: dict[str, Any]) -> str:
    """What went or would go, and how it is taken back."""
    files, dry = results["files"], results["dry_run"]
    lines = []
    if dry:
        lines += [f"{_size(size):>12}  {path}" for path, size in files.items()]
        lines += [f"{_size(sum(files.values())):>12}  in {len(files)} files", "", "README.md:", "", results["card"]]
        lines += [f"stays here: {path}" for path in results["left"]]
    lines += results["notes"]
    at = f"{results['repo']}{'@' + results['revision'].replace('/', '%2F') if results['revision'] else ''}"
    if dry:
        return "\n".join([*lines, "Nothing was sent; without --dry-run it goes."])
    visible = "private" if results["private"] else "public"
    n = len(results["changed"])
    what = f"{n} files sent or changed" if n else "nothing had changed"
    removed = f", {len(results['removed'])} of an earlier push removed" if results["removed"] else ""
    lines.append(f"{results['url']} ({visible}), commit {results['commit'][:12]}: {what}{removed}")
    return "\n".join([*lines, f"Take it back with: saelora generate {at} PROMPT, or saelora.load({at!r})"])
