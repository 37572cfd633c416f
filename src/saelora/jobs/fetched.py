"""A run that a command names by its hub repository: owner/name[@revision][/folder/inside]."""

from pathlib import Path

from saelora.named import exists

_WANTED = ("*.json", "*.jsonl", "*.safetensors", "*.npz", "*.html", "*.md", "*.yaml")  # never what is pickled


def is_on_hub(ref: str) -> bool:
    """Whether a name is that of a repository: nothing of it is here, and it has the form of one."""
    from saelora.saes import hub

    return not exists(ref) and hub.is_hub_ref(hub.at_revision(ref)[0])


def folder_of(ref: str) -> Path:
    """The folder of a run: the path itself, or where the files of the repository lie once they are fetched.

    Raises:
        InputError: no such repository, revision or folder in it, no access, or no network and nothing in the cache.
    """
    if not is_on_hub(ref):
        return Path(ref).expanduser()
    from saelora.saes import hub

    name, revision = hub.at_revision(ref)
    return hub.fetch_folder(name, _WANTED, revision)


def name_of(ref: str) -> str | None:
    """A repository's own name, owner/name and what was said after it; None of a folder, whose name tells."""
    return ref if is_on_hub(ref) else None


def beside(ref: str, ending: str) -> Path | None:
    """Where what is made of a repository's run goes, NAME-ENDING here; None of a folder, which it goes into."""
    from saelora.saes import hub

    return Path(f"{Path(hub.at_revision(ref)[0]).name}-{ending}") if is_on_hub(ref) else None
