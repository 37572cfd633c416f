"""The page's own files, as they were shipped, and what a browser may do with them."""

from functools import cache
from importlib.resources import files as resources

from fastapi.responses import Response

from saelora.use.serving.http import Refused

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def answer(name: str) -> Response:
    """One of the files.

    Raises:
        Refused: there is none of this name.
    """
    found = _files()
    if name not in found:
        raise Refused(404, f"there is no {name[:80]!r} here")
    kind = KINDS[name.rpartition(".")[2]]
    return Response(found[name], media_type=f"{kind}; charset=utf-8", headers=HEADERS)


@cache
def _files() -> dict[str, bytes]:
    folder = resources("saelora").joinpath("package_data", "page")
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.name.rpartition(".")[2] in KINDS}
