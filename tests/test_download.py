"""The downloader: resume, cuts, wrong files; and addresses from package clients."""
# ruff: noqa: F811 (pytest's fixtures are imported and then named by arguments)

import json
import subprocess
import sys

import pytest
from asset_server import own_cache, server, sha  # noqa: F401 (fixtures)

from alignkit.data import download as downloads

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB


def test_download_resumes_a_part(server, tmp_path):
    server.files["w"] = WEIGHTS
    (tmp_path / "w.part").write_bytes(WEIGHTS[:400_000])
    goal = tmp_path / "w"
    downloads.download(
        server.url("w"), goal, sha256=sha(WEIGHTS), size=len(WEIGHTS)
    )
    assert goal.read_bytes() == WEIGHTS
    assert server.requests == [("w", "bytes=400000-")]
    assert not (tmp_path / "w.part").exists()


def test_download_starts_again_when_the_server_does_not_resume(server, tmp_path):
    server.files["w"], server.faults["w"] = WEIGHTS, "no range"
    (tmp_path / "w.part").write_bytes(WEIGHTS[:400_000])
    downloads.download(
        server.url("w"), tmp_path / "w", sha256=sha(WEIGHTS), size=len(WEIGHTS)
    )
    assert (tmp_path / "w").read_bytes() == WEIGHTS
    assert server.requests == [("w", "bytes=400000-")]


def test_download_starts_again_when_other_bytes_are_sent(server, tmp_path):
    server.files["w"], server.faults["w"] = WEIGHTS, "cut, then wrong range"
    downloads.download(server.url("w"), tmp_path / "w", sha256=sha(WEIGHTS))
    assert (tmp_path / "w").read_bytes() == WEIGHTS
    assert server.requests == [("w", None), ("w", "bytes=300000-"), ("w", None)]


@pytest.mark.parametrize("size", [None, len(WEIGHTS)])
def test_download_goes_on_after_a_cut(server, tmp_path, size):
    server.files["w"], server.faults["w"] = WEIGHTS, "cut"
    downloads.download(server.url("w"), tmp_path / "w", sha256=sha(WEIGHTS), size=size)
    assert (tmp_path / "w").read_bytes() == WEIGHTS
    assert server.requests == [("w", None), ("w", "bytes=300000-")]


@pytest.mark.parametrize("old", [b"?" * 1000, WEIGHTS + b"more", b"?" * len(WEIGHTS)])
@pytest.mark.parametrize("size", [None, len(WEIGHTS)])
def test_a_part_of_another_file_does_no_harm(server, tmp_path, old, size):
    server.files["w"] = WEIGHTS
    (tmp_path / "w.part").write_bytes(old)
    downloads.download(server.url("w"), tmp_path / "w", sha256=sha(WEIGHTS), size=size)
    assert (tmp_path / "w").read_bytes() == WEIGHTS


def test_a_wrong_file_is_removed_and_named(server, tmp_path):
    server.files["w"] = b"other"
    with pytest.raises(downloads.WrongHash) as raised:
        downloads.download(
            server.url("w"), tmp_path / "w", sha256=sha(b"right"), label="weights"
        )
    assert "weights" in str(raised.value)
    assert sha(b"right") in str(raised.value) and sha(b"other") in str(raised.value)
    assert list(tmp_path.glob("w*")) == []


def test_a_file_of_another_size_is_refused_before_it_is_read(server, tmp_path):
    server.files["w"] = WEIGHTS
    with pytest.raises(downloads.WrongHash, match="expected 5 bytes, offered 1048576"):
        downloads.download(
            server.url("w"), tmp_path / "w", sha256=sha(WEIGHTS), size=5
        )
    assert list(tmp_path.glob("w*")) == []


def test_a_missing_file_is_asked_for_once(server, tmp_path):
    with pytest.raises(OSError, match="404"):
        downloads.download(server.url("none"), tmp_path / "w", sha256=sha(b""))
    assert server.requests == [("none", None)]


def test_address_asks_the_package_clients(monkeypatch):
    asked = []

    def run(command, **settings):
        asked.append(command)
        url = "https://mirror.example/x.whl"
        report = {"install": [{"download_info": {"url": url}}]}
        out = json.dumps(report) if "pip" in command else f"{url}\n"
        return subprocess.CompletedProcess(command, 0, stdout=out, stderr="")

    monkeypatch.setattr(downloads.subprocess, "run", run)
    assert downloads.address("pip:x==1") == "https://mirror.example/x.whl"
    assert downloads.address("npm:@a/x@1") == "https://mirror.example/x.whl"
    assert asked[0][:3] == (sys.executable, "-m", "pip") and asked[0][-1] == "x==1"
    assert asked[1][1:] == ("view", "@a/x@1", "dist.tarball")
    downloads.address("pip:x==1@win_arm64")  # the wheel of another system
    assert asked[2][-5:] == ("--platform", "win_arm64", "--target", ".", "x==1")
    assert downloads.address("hf:org/model@main:a.bin").endswith(
        "/org/model/resolve/main/a.bin"
    )
    with pytest.raises(ValueError, match="ftp:"):
        downloads.address("ftp:x")


def test_address_gives_the_clients_last_words(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="a\nno such thing\n")
    monkeypatch.setattr(downloads.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(OSError, match="pip found no address: no such thing"):
        downloads.address("pip:x==1")
