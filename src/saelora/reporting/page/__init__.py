"""Runs -> one self-contained HTML page. Pure: it sees what runs left on disk, never a model."""

import base64
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelora.evals.registry import EVALUATIONS
from saelora.reporting.card import spliced_in
from saelora.reporting.format import one_line
from saelora.reporting.page import collections, latents, lead, losses, provenance, usage
from saelora.reporting.page.collections import Collection, read_collection
from saelora.reporting.page.lead import Lead
from saelora.reporting.page.read import Run, read_runs
from saelora.reporting.page.view import Section

MARKER = '<meta name="generator" content="saelora">'
__all__ = ["MARKER", "Collection", "Run", "collection_page", "page", "read_collection", "read_runs"]
_HERE = Path(__file__).parent
_SCRIPTS = ("dom.js", "page.js", "fold.js", "reader.js")
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"}  # categories of Unicode that show nothing, or steer the text
_SHOWN = {"\n": "↵\n", "\r": "␍", "\t": "⇥"}
_LONGEST = 20_000  # characters of a text that are shown


def page(runs: Sequence[Run]) -> str:
    """The page: no network, opens from disk, safe whatever the runs' texts and names hold.

    Raises:
        InputError: a part's result is not of the form that this version writes.
    """
    return _rendered(_title(runs), _sections(runs), lead.of_runs(runs), runs)


def collection_page(found: Collection, links_from: Path) -> str:
    """The page of a sweep or a comparison, as safe as that of a run; its links lead to files beside it.

    Args:
        links_from: the folder that the page will be in.
    """
    return _rendered(one_line(found.title), collections.sections(found, links_from), collections.lead(found))


def _rendered(title: str, sections: Sequence[Section], first: Lead, runs: Sequence[Run] = ()) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    script = "".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template("page.html.jinja").render(
        title=title,
        runs=runs,
        lead=first,
        sections=sections,
        payload=Markup(script_json(next((s.payload for s in sections if s.payload), {"runs": []}))),
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        svg=Markup,  # of matplotlib, which escapes its texts
        digest=digest,
        marker=Markup(MARKER),
    )
    return html.encode("utf-8", "replace").decode()  # halves of surrogate pairs have no UTF-8


def _title(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} adapted models compared"
    return f"{one_line(runs[0].manifest.model.ref)} around its {spliced_in(runs[0].manifest)}"


def script_json(value: Any) -> str:
    """JSON that is inert inside a script element: no <, >, & and nothing beyond ASCII."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sections(runs: Sequence[Run]) -> list[Section]:
    made = [
        losses.overview(runs),
        usage.section(runs),
        *(each for evaluation in EVALUATIONS.values() for each in evaluation.sections(runs)),
    ]
    made.append(latents.section(runs))
    samples = [(run, run.results.samples) for run in runs if run.results.samples]
    if samples:
        about = "The same beginning, continued by each variant of the model, always with its likeliest token."
        n = sum(len(own) for _, own in samples)
        gist = [("", f"{n} beginning{'s' if n > 1 else ''}, continued by each variant")]
        made.append(Section("samples", "Samples", about, extra=samples, gist=gist))
    return [*made, provenance.section(runs)]


def visible(text: Any) -> list[tuple[bool, str]]:
    """Text as pieces (special, piece): what is invisible or steers direction is named by its code point.

    A text too long to read is cut, with its length.
    """
    text = str(text)
    pieces: list[tuple[bool, str]] = []
    for character in text[:_LONGEST]:
        special = character not in "\n" and unicodedata.category(character) in _INVISIBLE
        shown = f"U+{ord(character):04X}" if special and character not in _SHOWN else character
        shown = _SHOWN.get(character, shown) if character != "\n" else character
        if pieces and not special and not pieces[-1][0]:
            pieces[-1] = (False, pieces[-1][1] + shown)
        else:
            pieces.append((special, shown))
    if len(text) > _LONGEST:
        pieces.append((True, f"… {len(text):,} characters"))
    return pieces
