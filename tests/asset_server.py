"""A small server with faults, and archives made in memory, for the asset tests."""

import hashlib
import io
import re
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alignkit.data import download as downloads
from alignkit.data import fetch


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode="w:gz", extra=()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return buffer.getvalue()



class Server(ThreadingHTTPServer):
    """Serves `files`; `faults[path]` changes how, `requests` logs (path, Range)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests = {}, {}, []

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # clients may hang up
            super().handle_error(request, client_address)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        name, asked = self.path[1:], self.headers.get("Range")
        self.server.requests.append((name, asked))
        fault = self.server.faults.get(name)
        if name not in self.server.files:
            return self.send_error(404)
        data = self.server.files[name]
        start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if fault == "no range":
            start = 0
        if start and start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            shown = 0 if fault == "then wrong range" else start
            self.send_header(
                "Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}"
            )
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if fault in ("cut", "cut, then wrong range"):
            self.server.faults[name] = fault[5:]
            return self.wfile.write(data[start : start + 300_000])
        self.wfile.write(data[start:])


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNKIT_BRING", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "WAIT", 0.001)
    monkeypatch.setattr(fetch, "_checked", set())
