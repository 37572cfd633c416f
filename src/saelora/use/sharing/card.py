"""The card of a repository: the run's own card, with what the hub reads of it, intervals, code that runs, citation."""

from __future__ import annotations

from saelora.evals.loss_result import LossResult
from saelora.manifest import RESULTS, read_json
from saelora.reporting import hub_card
from saelora.use.reference import SAE_CONFIG, Run
from saelora.use.sharing.parcel import CARD, Parcel


def card_of(run: Run, parcel: Parcel, repo: str, licence: str | None, revision: str | None) -> str:
    """Front matter and text. What it says of the run is what the parcel says."""
    about = hub_card.Repository(repo, revision, licence)
    if parcel.manifest is not None:
        path = run.folder / RESULTS
        results = LossResult.read(read_json(path), path, "bring it back as its run left it, or run it anew")
        return hub_card.run_card(about, parcel.manifest, results)
    held = {file.path: file for file in parcel.files}
    folders = sorted(path.removesuffix(SAE_CONFIG).rstrip("/") for path in held if path.endswith(SAE_CONFIG))
    saes = {}
    for name in folders:
        path = run.folder / name / RESULTS
        found = read_json(path) if path.is_file() else {}
        saes[name] = found if isinstance(found, dict) else {}
    own = run.folder / CARD
    alone = _body(own.read_text(encoding="utf-8")) if folders == [""] and own.is_file() else None
    return hub_card.saes_card(about, parcel.training or {}, saes, alone)


def _body(card: str) -> str:
    """A card without its front matter."""
    parts = card.split("---\n", 2)
    return parts[2] if len(parts) == 3 and not parts[0] else card
