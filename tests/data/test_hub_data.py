"""A hub dataset, read by the real clients from a server of our own: its one column, and no more of it than that."""

import http.server
import io
import json
import os
import subprocess
import sys
import threading
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
READ = """
import json, sys
from saelora.data.corpus import open_corpus
from saelora.errors import InputError
try:
    corpus = open_corpus("owner/name", text_column=sys.argv[1])
    print(json.dumps([corpus.revision, [[d.text, d.source] for d in corpus]]))
except InputError as error:
    print(json.dumps(str(error)))
"""


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub's HTTP interface as reading one dataset uses; counts the bytes of files that it served."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.n_served = {}, 0

    def tree(self):
        return [{"type": "file", "path": p, "size": len(b), "oid": "0" * 40} for p, b in self.files.items()]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        below = path.removeprefix("/api/datasets/owner/name")
        name = path.partition("/resolve/")[2].partition("/")[2]
        if below == f"/tree/{COMMIT}":
            self.answer(200, json.dumps(self.server.tree()).encode())
        elif below in ("", "/revision/main", f"/revision/{COMMIT}"):
            files = [{"rfilename": p} for p in self.server.files]
            self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": files}).encode())
        elif name in self.server.files:
            self.send_file(self.server.files[name])
        else:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def send_file(self, content):
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or len(content)) + 1]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{len(content):040x}"', "Accept-Ranges": "bytes"}
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self.server.n_served += len(part) if self.command == "GET" else 0
        self.answer(206 if "Range" in self.headers else 200, part, headers)

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def read(hub, column, home):
    """What a fresh process reads of the dataset, which takes its hub from the environment as users' do."""
    env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}", "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", READ, column], env=env | {"HF_HUB_OFFLINE": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_column_of_a_hub_dataset_of_json_lines_is_read_whatever_the_others_hold(hub, tmp_path):
    rows = [{"text": 1, "prose": "one", "n": 1}, {"text": "x", "prose": "two", "n": "?"}, {"prose": "three", "n": [{}]}]
    hub.files["train.jsonl"] = "\n".join(map(json.dumps, rows)).encode()
    texts = [[text, f"owner/name:{i}"] for i, text in enumerate(("one", "two", "three"))]
    assert read(hub, "prose", tmp_path) == [COMMIT, texts]


def test_column_of_a_hub_dataset_of_parquet_is_fetched_without_the_others(hub, tmp_path):
    other = [os.urandom(1 << 20) for _ in range(40)]
    written = io.BytesIO()
    pq.write_table(pa.table({"image": other, "prose": [f"p{i}" for i in range(40)], "text": ["t"] * 40}), written)
    hub.files["train.parquet"] = written.getvalue()
    commit, texts = read(hub, "prose", tmp_path)
    assert (commit, texts[39]) == (COMMIT, ["p39", "owner/name:39"])
    assert 0 < hub.n_served < len(hub.files["train.parquet"]) / 2


def test_column_that_a_hub_dataset_lacks_is_answered_with_those_it_has(hub, tmp_path):
    hub.files["train.jsonl"] = b'{"prose": "one", "n": 1}\n'
    said = read(hub, "text", tmp_path)
    assert "has no column 'text', only" in said
    assert "prose" in said
    assert "--text-column" in said
