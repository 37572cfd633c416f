"""What a figure was measured on, and whether two figures compare. Plain data: it sees no model.

``about`` stands beside every result: model, SAEs and token policy (``saelora.manifest.describe``), and from here
``heldout``, the held-out rows by a hash of their token ids, and ``autocast``, the half precision that they were run in.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

About = Mapping[str, Any]
OTHER_ROWS = "other held-out rows"


def heldout_rows(rows: Any) -> dict[str, Any]:
    """What identifies rows of token ids, a tensor [n_rows, context]."""
    ids = rows.cpu().numpy().astype("<i8")
    digest = hashlib.sha256(repr(ids.shape).encode())
    digest.update(ids.tobytes())
    return {"fingerprint": digest.hexdigest()[:16], "n_rows": int(ids.shape[0]), "context": int(ids.shape[1])}


def measured_on(about: About, rows: Any, autocast: Any = None) -> dict[str, Any]:
    """``about`` with the held-out rows and the precision of a measurement.

    Args:
        rows: [n_rows, context], all that were measured on.
        autocast: a torch dtype, or None for none.
    """
    half = None if autocast is None else str(autocast).removeprefix("torch.")
    return {**about, "heldout": heldout_rows(rows), "autocast": half}


def same_model(one: About, other: About) -> bool | None:
    """Whether two models' entries name the same weights: by fingerprint, or of hub models by commit; None: unknown.

    A hub model has no fingerprint and a local one no commit, so that whether a download is the hub's cannot be known.
    """
    for key in ("fingerprint", "revision"):
        if one.get(key) is not None and other.get(key) is not None:
            return bool(one[key] == other[key])
    return None


def model_name(model: About) -> str:
    """A model as a message names it: reference, and what identifies its weights."""
    weights = model.get("fingerprint") or model.get("revision")
    return f"{model.get('ref')} ({weights or 'of unknown weights'})"


def sae_names(saes: Sequence[About]) -> str:
    """SAEs as a message names them."""
    return ", ".join(f"{s.get('ref')} at {s.get('hookpoint')} ({_weights(s)})" for s in saes) or "none"


def _weights(sae: About) -> str:
    settings = "".join(f", {key} {value}" for key, value in (sae.get("settings") or {}).items() if key == "k")
    return f"{sae.get('fingerprint')}{settings}"


def same_saes(one: Sequence[About], other: Sequence[About]) -> bool:
    """Whether the same SAEs sit at the same places, in any order: weights, and of the settings those known of both."""
    a, b = ({str(sae.get("hookpoint")): sae for sae in saes} for saes in (one, other))
    return a.keys() == b.keys() and all(_same_sae(a[where], b[where]) for where in a)


def _same_sae(one: About, other: About) -> bool:
    if one.get("fingerprint") != other.get("fingerprint"):
        return False
    a, b = one.get("settings") or {}, other.get("settings") or {}
    return all(a[key] == b[key] for key in a.keys() & b.keys())


def text_differs(one: About, other: About) -> tuple[list[str], list[str]]:
    """Why figures do not compare that were measured on ``one`` and on ``other``; SAEs and adapters may differ.

    Returns:
        What differs, as "other held-out rows (4 rows of 32 tokens, not 12 of 32)"; and what is not known of one of
        them, as "which held-out rows".
    """
    differs, unknown = [], []
    rows, then = one.get("heldout"), other.get("heldout")
    if not rows or not then:
        unknown.append("which held-out rows")
    elif rows["fingerprint"] != then["fingerprint"]:
        size, before = (f"{each['n_rows']} rows of {each['context']} tokens" for each in (rows, then))
        told = f"{size}, not {before}" if size != before else f"{size}, but of other text"
        differs.append(f"{OTHER_ROWS} ({told})")
    model, before_model = one.get("model"), other.get("model")
    if not model or not before_model:
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


def _policy(about: About) -> dict[str, Any] | None:
    """What is exempt: a kind of exemption that an older version did not know is one that is off."""
    policy = about.get("token_policy")
    return None if policy is None else {key: value for key, value in policy.items() if value not in (None, False, [])}


def _precision(about: About) -> str | None:
    dtype = (about.get("model") or {}).get("dtype")
    if dtype is None:
        return None
    half = about.get("autocast")
    return f"{dtype} with autocast to {half}" if half and half != dtype else str(dtype)


def groups(abouts: Sequence[About | None]) -> list[str]:
    """A letter for each: those of one letter compare. "?" where it is not known what one was measured on."""
    firsts: list[About] = []
    letters = []
    for about in abouts:
        if not about or not about.get("heldout"):
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
