"""What a figure was measured on, and whether two figures compare. Plain data: it sees no model.

``About`` stands beside every result: model, SAEs and token policy (``saelora.manifest.describe``), and from here
``heldout``, the held-out rows by a hash of their token ids, and ``autocast``, the half precision that they were run in.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from saelora.records import JsonObject, Number, Record

OTHER_ROWS = "other held-out rows"


class ModelId(Record):
    """What identifies a model: a hub model has a commit (``revision``), a local one a fingerprint of its weights."""

    ref: str
    revision: str | None = None
    fingerprint: str | None = None
    model_type: str | None = None
    dtype: str | None = None


class SAEId(Record):
    """What identifies an SAE, and where it sits.

    Args:
        fingerprint: of its weights.
        settings: of its configuration, what that does not see, such as k.
    """

    ref: str | None = None
    hookpoint: str
    format: str | None = None
    architecture: str | None = None
    d_in: int | None = None
    d_sae: int | None = None
    revision: str | None = None
    fingerprint: str | None
    settings: JsonObject | None = None


class Kind(NamedTuple):
    """What is spliced in, by name: one of it, and several."""

    one: str
    many: str

    def of(self, n: int) -> str:
        """The name of n."""
        return self.many if n > 1 else self.one


SAE, TRANSCODER = Kind("SAE", "SAEs"), Kind("transcoder", "transcoders")
BOTH = Kind("SAE or transcoder", "SAEs and transcoders")


def kind_of(*saes: SAEId) -> Kind:
    """What these are: SAEs, transcoders, or some of each."""
    kinds = {TRANSCODER if "transcoder" in (sae.architecture or "") else SAE for sae in saes}
    return BOTH if len(kinds) > 1 else next(iter(kinds), SAE)


def replacement_name(replacement: JsonObject | None) -> str:
    """How transcoders were put in, as ``About`` records it: "cascading", "parallel with errors added"."""
    said = replacement or {}
    return f"{said.get('mode', 'cascading')}{' with errors added' if said.get('add_error') else ''}"


def replacement_words(replacement: JsonObject | None, kind: Kind, n: int) -> str:
    """The same of n that are spliced in, as part of a sentence; nothing where they read the replaced stream."""
    said = replacement or {}
    told = []
    if said.get("mode") == "parallel":
        who = "each transcoder " if kind is BOTH else "each " if n > 1 else ""
        told.append(f"{who}reading the original's stream (parallel)")
    if said.get("add_error"):
        whose = "the transcoders'" if kind is BOTH else "their" if n > 1 else "its"
        told.append(f"with {whose} errors added back")
    return ", ".join(told)


class MassivePolicy(Record):
    """Which norms count as massive: ``multiple`` times the median, and by hookpoint the norm itself."""

    multiple: Number
    limits: dict[str, Number]


class PolicyRecord(Record):
    """Which positions the SAEs left alone; older versions wrote true or false for ``first``."""

    exempt_ids: list[int] = []
    first: int | bool = 0
    padding: bool = False
    massive: MassivePolicy | None = None


class Heldout(Record):
    """What identifies rows of token ids [n_rows, context]."""

    fingerprint: str
    n_rows: int
    context: int


class About(Record):
    """What was measured, and on what; an older version did not record all of it.

    Args:
        replacement: how transcoders were put in (``saelora.core.replacement``); None: each read the replaced stream.
        autocast: the half precision of the run; None for none.
        tuned_saes: fingerprints of the SAEs that a run trained, by hookpoint.
        adapter: fingerprint of the adapter.
        other_weights, unchecked: what differs from the run's own and was forced; what could not be compared.
    """

    model: ModelId | None = None
    saes: list[SAEId] = []
    token_policy: PolicyRecord | None = None
    replacement: JsonObject | None = None
    heldout: Heldout | None = None
    autocast: str | None = None
    tuned_saes: dict[str, str] | None = None
    adapter: str | None = None
    other_weights: list[str] = []
    unchecked: list[str] = []

    def having(self, **found: Any) -> "About":
        """The same with these fields set."""
        return self.model_copy(update=found)


def other_replacement(one: About, other: About) -> str | None:
    """That two were measured with transcoders put in otherwise, in words; None where they were not."""
    if one.replacement == other.replacement:
        return None
    mode, before = (replacement_name(each.replacement) for each in (one, other))
    return f"transcoders put in otherwise ({mode}, not {before})"


def heldout_rows(rows: Any) -> Heldout:
    """What identifies rows of token ids, a tensor [n_rows, context]."""
    ids = rows.cpu().numpy().astype("<i8")
    digest = hashlib.sha256(repr(ids.shape).encode())
    digest.update(ids.tobytes())
    return Heldout(fingerprint=digest.hexdigest()[:16], n_rows=int(ids.shape[0]), context=int(ids.shape[1]))


def measured_on(about: About, rows: Any, autocast: Any = None) -> About:
    """``about`` with the held-out rows and the precision of a measurement.

    Args:
        rows: [n_rows, context], all that were measured on.
        autocast: a torch dtype, or None for none.
    """
    half = None if autocast is None else str(autocast).removeprefix("torch.")
    return about.having(heldout=heldout_rows(rows), autocast=half)


def same_model(one: ModelId, other: ModelId) -> bool | None:
    """Whether two models' entries name the same weights: by fingerprint, or of hub models by commit; None: unknown.

    A hub model has no fingerprint and a local one no commit, so that whether a download is the hub's cannot be known.
    """
    for a, b in ((one.fingerprint, other.fingerprint), (one.revision, other.revision)):
        if a is not None and b is not None:
            return a == b
    return None


def model_name(model: ModelId) -> str:
    """A model as a message names it: reference, and what identifies its weights."""
    return f"{model.ref} ({model.fingerprint or model.revision or 'of unknown weights'})"


def sae_names(saes: Sequence[SAEId]) -> str:
    """SAEs as a message names them."""
    return ", ".join(f"{s.ref} at {s.hookpoint} ({_weights(s)})" for s in saes) or "none"


def _weights(sae: SAEId) -> str:
    settings = sae.settings or {}
    return f"{sae.fingerprint}, k {settings['k']}" if "k" in settings else str(sae.fingerprint)


def same_saes(one: Sequence[SAEId], other: Sequence[SAEId]) -> bool:
    """Whether the same SAEs sit at the same places, in any order: weights, and of the settings those known of both."""
    a, b = ({sae.hookpoint: sae for sae in saes} for saes in (one, other))
    return a.keys() == b.keys() and all(_same_sae(a[where], b[where]) for where in a)


def _same_sae(one: SAEId, other: SAEId) -> bool:
    if one.fingerprint != other.fingerprint:
        return False
    a, b = one.settings or {}, other.settings or {}
    return all(a[key] == b[key] for key in a.keys() & b.keys())


def text_differs(one: About, other: About) -> tuple[list[str], list[str]]:
    """Why figures do not compare that were measured on ``one`` and on ``other``; SAEs and adapters may differ.

    Returns:
        What differs, as "other held-out rows (4 rows of 32 tokens, not 12 of 32)"; and what is not known of one of
        them, as "which held-out rows".
    """
    differs, unknown = [], []
    rows, then = one.heldout, other.heldout
    if rows is None or then is None:
        unknown.append("which held-out rows")
    elif rows.fingerprint != then.fingerprint:
        size, before = (f"{each.n_rows} rows of {each.context} tokens" for each in (rows, then))
        told = f"{size}, not {before}" if size != before else f"{size}, but of other text"
        differs.append(f"{OTHER_ROWS} ({told})")
    model, before_model = one.model, other.model
    if model is None or before_model is None:
        unknown.append("which model")
    else:
        same = same_model(model, before_model)
        if same is False:
            differs.append(f"another model ({model_name(model)}, not {model_name(before_model)})")
        elif same is None:
            unknown.append("whether the model is the same")
    policy, before_policy = (_policy(each) for each in (one, other))
    if policy is None or before_policy is None:
        unknown.append("which positions SAEs left alone")
    elif policy != before_policy:
        differs.append("another token policy")
    a, b = (_precision(each) for each in (one, other))
    if a is not None and b is not None and a != b:
        differs.append(f"another precision ({a}, not {b})")
    return differs, unknown


def _policy(about: About) -> JsonObject | None:
    """What is exempt: a kind of exemption that an older version did not know is one that is off."""
    if about.token_policy is None:
        return None
    return {key: value for key, value in about.token_policy.to_json().items() if value not in (None, False, [])}


def _precision(about: About) -> str | None:
    if about.model is None or about.model.dtype is None:
        return None
    dtype, half = about.model.dtype, about.autocast
    return f"{dtype} with autocast to {half}" if half and half != dtype else dtype


def groups(abouts: Sequence[About | None]) -> list[str]:
    """A letter for each: those of one letter compare. "?" where it is not known what one was measured on."""
    firsts: list[About] = []
    letters = []
    for about in abouts:
        if about is None or about.heldout is None:
            letters.append("?")
            continue
        found = next((i for i, first in enumerate(firsts) if not text_differs(about, first)[0]), len(firsts))
        if found == len(firsts):
            firsts.append(about)
        letters.append(chr(ord("a") + found) if found < 26 else f"a{found}")
    return letters


def not_comparable(abouts: Sequence[About | None], what: str = "rows") -> list[str]:
    """Sentences that say which figures of a table do not compare; none where all do.

    Args:
        abouts: of the table's rows, in order; their letters are those of ``groups``.
        what: the table's rows are.
    """
    letters = groups(abouts)
    known = [letter for letter in dict.fromkeys(letters) if letter != "?"]
    told = []
    first = next((about for about, letter in zip(abouts, letters, strict=True) if letter == "a"), None)
    for letter in known[1:]:
        about = abouts[letters.index(letter)]
        assert about is not None
        assert first is not None
        told.append(
            f"Not comparable: {what} marked {letter} and {what} marked a. {letter} has "
            f"{' and '.join(text_differs(about, first)[0])}."
        )
    if "?" in letters:
        some = f"of {what} marked ?, " if known else ""
        told.append(f"Whether they compare is unknown: {some}what they were measured on was not recorded.")
    return told
