"""A parcel of files into a hub repository, in one commit: whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saelora.errors import InputError, on_one_line
from saelora.manifest import MANIFEST
from saelora.use.reference import TRAINING
from saelora.use.sharing.parcel import CARD, OWNED, File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import HfApi

_REPO = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*$", re.ASCII)
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with write rights"


@dataclass(frozen=True)
class Pushed:
    """What the hub has now.

    Args:
        commit: its hash.
        changed: files that this push changed; none where all lay there as they are.
        removed: files of an earlier push that this run has no more.
    """

    commit: str
    private: bool
    changed: list[str]
    removed: list[str]


def check_repo(repo: str) -> None:
    """Raise InputError where a name is none of a repository."""
    if not _REPO.match(repo):
        raise InputError(f"{repo[:200]!r} is no name of a repository: expected owner/name")


def check_login() -> None:
    """Raise InputError where there is no token."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise InputError(f"you are not logged in to the hub: {_LOGIN}")


def upload(files: Sequence[File], repo: str, *, public: bool, revision: str | None) -> Pushed:
    """Make the repository where it is not there, and commit the files that it does not hold as they are.

    Large files are sent first, but for those that an interrupted push has sent; only then the commit is made. Of a
    repository that holds a run, files of that run which this one lacks are removed by the same commit.

    Args:
        public: as the repository is made; one that is public already takes nothing private.
        revision: the branch, made where it is not there; None: the main one.

    Raises:
        InputError: no network, no rights, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with _explained(repo, revision):
        api.create_repo(repo, private=not public, exist_ok=True)
        private = bool(api.model_info(repo).private)
        if not private and not public:
            raise InputError(f"{repo} is public: say --public to push there, or name another repository")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        before = _tree(api, repo, revision)
        ours = {MANIFEST, TRAINING} & before.keys()
        others = [path for path in before if path not in (CARD, ".gitattributes")]
        if others and not ours:
            raise InputError(f"{repo} holds something else ({others[0]}, ...): name another repository, or a new one")
        there = {file.path for file in files}
        gone = [path for path in before if ours and path.startswith(OWNED) and path not in there]
        additions: list[Any] = [CommitOperationAdd(file.path, file.content) for file in files]
        made = api.create_commit(
            repo,
            [*additions, *(CommitOperationDelete(path) for path in gone)],
            commit_message="Run pushed by saelora",
            revision=revision,
        )
        after = _tree(api, repo, made.oid)
    changed = [path for path, held in after.items() if before.get(path) != held]
    return Pushed(str(made.oid), private, [file.path for file in files if file.path in changed], gone)


def _tree(api: HfApi, repo: str, revision: str | None) -> dict[str, str]:
    """What identifies each file's content, by its path."""
    from huggingface_hub import RepoFile

    every = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {each.path: str(each.blob_id) for each in every if isinstance(each, RepoFile)}


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:

    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the hub's, and what the HTTP library raises below them, inside one another
        said = _explanation(error, repo, revision)
        if said is None:
            raise
        raise InputError(said) from error


def _explanation(error: Exception, repo: str, revision: str | None) -> str | None:
    """What a failed push means; None of what is no trouble of network, rights or files, but a fault of ours."""
    from huggingface_hub import errors

    chain = [each for each in (error, error.__cause__, error.__context__) if each is not None]
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return f"{repo} cannot be pushed with HF_HUB_OFFLINE set: unset it"
    for each in chain:
        if isinstance(each, errors.HfHubHTTPError):
            return _refused(each, repo, revision)
    network = errors.HfHubHTTPError.__mro__[1]  # the HTTP library's own base, whichever the client uses
    if any(isinstance(each, network | ConnectionError | TimeoutError) for each in chain):
        return (
            f"{repo} was not pushed, the hub cannot be reached ({on_one_line(chain[-1])}): connect to the network and "
            "push again; what was sent is not sent twice"
        )
    # the client's own checks, files that cannot be read, the transfer of large files
    return (
        f"{repo} was not pushed: {on_one_line(error)}"
        if isinstance(error, OSError | ValueError | RuntimeError)
        else None
    )


def _refused(error: Any, repo: str, revision: str | None) -> str:
    from huggingface_hub import errors

    status = int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no branch {revision}: leave out --revision, or name a branch"
    if status == 401:
        return f"the hub does not know you, or {repo} is not yours to see: {_LOGIN}"
    if status in (403, 404):
        return f"{repo} is not yours to write to ({_said(error)}): {_LOGIN}, or name a repository of your own"
    if status in (409, 412):
        return f"{repo} was changed by someone else meanwhile: push again"
    more = "push again; what was sent is not sent twice" if status >= 500 or status == 429 else "see what it says"
    return f"{repo} was not pushed, the hub refuses ({_said(error)}): {more}"


def _said(error: Any) -> str:
    """The server's own words where it has some."""
    return on_one_line(getattr(error, "server_message", None) or error, 200)
