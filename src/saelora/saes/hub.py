"""SAEs in hub repositories: list, choose, download only what is needed, with errors that name the remedy."""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote

from saelora.errors import InputError, on_one_line
from saelora.saes.formats import Found, choose, folder_of, layer_file, single_file

_REF = re.compile(r"^[\w.-]+/[\w.-]+(/.+)?$")
_AT = re.compile(r"^([\w.-]+/[\w.-]+)@([^/@]+)(/.+)?$")
# matches no file, so a cached snapshot is found without asking whether it is complete
_NO_FILES = [".none"]


@dataclass(frozen=True)
class Fetched:
    """One SAE's files in the hub cache; `name` is owner/repository/folder, `revision` the commit hash."""

    folder: Path
    format: str
    name: str
    revision: str


def is_hub_ref(ref: str) -> bool:
    """Whether `ref` has the form owner/name or owner/name/path/inside/repo."""
    return bool(_REF.match(ref)) and not ref.startswith(".")


def at_revision(ref: str) -> tuple[str, str | None]:
    """owner/name@revision[/folder/inside] -> the same without the revision, and it; None where there is none.

    A branch whose name has a slash is written with %2F.
    """
    match = _AT.match(ref)
    return (ref, None) if match is None else (match[1] + (match[3] or ""), unquote(match[2]))


def fetch(ref: str, revision: str | None = None) -> Fetched:
    """Download the one SAE that `ref` means; from the cache alone when the hub cannot be reached.

    Raises:
        InputError: no such repository, revision or SAE in it, no access, or no network and nothing in the cache.
    """
    owner, name, *inside = ref.strip("/").split("/", 2)
    repo, inner = f"{owner}/{name}", inside[0] if inside else ""
    commit, paths, online = _list(repo, revision)
    if inner in paths and (layer := layer_file(inner.rpartition("/")[2])) is not None:
        beside = [f"{inner.rpartition('/')[0]}/{name}".lstrip("/") for name in layer.beside]
        files = [inner, *(path for path in beside if path in paths)]
        folder = _download(repo, revision, commit, files) if online else _cached(repo, commit, None)
        return Fetched((folder / inner).parent, layer.format, f"{repo}/{inner}", commit)
    if inner in paths and (single := single_file(inner.rpartition("/")[2])) is not None:
        folder = _download(repo, revision, commit, [inner]) if online else _cached(repo, commit, None)
        return Fetched((folder / inner).parent, single.format, f"{repo}/{inner}", commit)
    if inner in paths:
        inner = (folder_of(inner) or inner).removeprefix(".")
    below = [path.removeprefix(f"{inner}/") for path in paths if not inner or path.startswith(f"{inner}/")]
    if not below:
        folders = sorted({path.rpartition("/")[0] for path in paths if "/" in path})
        near = difflib.get_close_matches(inner, folders, n=3, cutoff=0.3) or folders[:3]
        raise InputError(f"{repo} has no folder {inner!r}: expected one such as {', '.join(near) or '(it has none)'}")
    found = choose(below, ref)
    files = [f"{inner}/{file}" if inner else file for file in found.files]
    files += [path for path in _run_configs(found, inner) if path in paths]
    folder = _download(repo, revision, commit, files) if online else _cached(repo, commit, None)
    within, place = (_within(inner, part) for part in (found.folder, found.place))
    return Fetched(folder / within, found.format, f"{repo}/{place}".rstrip("/"), commit)


def _within(inner: str, part: str) -> str:
    return "/".join(each for each in (inner, part) if each not in ("", "."))


def fetch_folder(ref: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Download what matches shell patterns of a repository, or of a folder in it; from the cache without the hub.

    Raises:
        InputError: as ``fetch``, or nothing there matches.
    """
    owner, name, *inside = ref.strip("/").split("/", 2)
    repo, inner = f"{owner}/{name}", inside[0] if inside else ""
    commit, paths, online = _list(repo, revision)
    below = [path for path in paths if not inner or path.startswith(f"{inner}/")]
    files = [path for path in below if any(fnmatch(path, pattern) for pattern in patterns)]
    if not files:
        where = f"{repo} has no folder {inner!r} with" if inner and not below else f"{ref} holds none of"
        raise InputError(f"{where} {', '.join(patterns)}: check the name on https://huggingface.co/{repo}")
    folder = _download(repo, revision, commit, files) if online else _cached(repo, commit, None)
    return folder / inner


def paths_of(repo: str) -> list[str]:
    """The files of a repository, or those of its snapshot in the cache where the hub cannot be reached.

    Raises:
        InputError: no such repository, no access, or no network and nothing in the cache.
    """
    return _list(repo, None)[1]


def _list(repo: str, revision: str | None) -> tuple[str, list[str], bool]:
    """Commit hash, paths in the repository, and whether the hub answered."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(repo, revision=revision)
        return str(info.sha), [file.rfilename for file in info.siblings or []], True
    except HfHubHTTPError as error:
        if _status(error) < 500:
            raise explain(error, repo, revision) from error
        cause: Exception = error
    except ValueError as error:
        raise explain(error, repo, revision) from error
    except Exception as error:  # no network, in one of many forms that depend on the HTTP library below
        cause = error
    folder = _cached(repo, revision, cause)
    return (
        folder.name,
        [str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()],
        False,
    )


def _download(repo: str, revision: str | None, commit: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:  # by the branch's name, so that the cache remembers where it pointed and finds it without the hub
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=files))
        if folder.name == commit:
            return folder
        return Path(snapshot_download(repo, revision=commit, allow_patterns=files))  # it has moved since it was listed
    except Exception as error:
        raise explain(error, repo, commit) from error


def _cached(repo: str, revision: str | None, cause: Exception | None) -> Path:
    """The snapshot in the cache; `cause` is why the hub itself did not answer."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_NO_FILES, local_files_only=True))
    except Exception as error:
        raise explain(cause or error, repo, revision) from error


def cached_commit(repo: str) -> str | None:
    """The commit hash of the default branch as last downloaded, from the cache; None when it was not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    path = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "refs" / "main"
    return path.read_text().strip() if path.is_file() else None


def explain(error: Exception, repo: str, revision: str | None = None) -> InputError:
    """What a failed access means and what to do about it, in one line."""
    from huggingface_hub import errors

    at = f" at revision {revision}" if revision else ""
    if isinstance(error, errors.GatedRepoError):
        text = (
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then log in with `hf auth login` "
            "or set HF_TOKEN"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        text = (
            f"{repo} is not on the hub, or it is private: check the spelling, or log in with `hf auth login` or set "
            "HF_TOKEN"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"{repo} has no revision {revision}: give a branch, a tag or a full commit hash"
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        text = f"{repo}{at} lacks a file ({on_one_line(error)}): check the path inside the repository"
    elif isinstance(error, errors.HFValidationError):
        text = f"{repo} is no repository name: expected owner/name"
    elif isinstance(error, errors.HfHubHTTPError):
        text = (
            f"{repo}{at} cannot be read from the hub ({on_one_line(error)}): log in with `hf auth login`, or try again"
        )
    else:
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
        remedy = "unset HF_HUB_OFFLINE" if offline else "connect to the network"
        text = (
            f"{repo}{at} is not in the local cache and the hub cannot be reached ({type(error).__name__}): "
            f"{remedy}, or give the path of a local copy"
        )
    return InputError(text)


def _status(error: Exception) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _run_configs(found: Found, inner: str) -> list[str]:
    """Where sparsify keeps the training run's configuration: up to two folders above the SAE."""
    if found.format != "sparsify":
        return []
    parts = [part for part in (*inner.split("/"), *found.folder.split("/")) if part not in ("", ".")]
    return ["/".join([*parts[:-up], "config.json"]) for up in (1, 2) if up <= len(parts)]
