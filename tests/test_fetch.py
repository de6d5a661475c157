"""Assets: fetched once, checked, mended, brought; against a server made here."""
# ruff: noqa: F811 (pytest's fixtures are imported and then named by arguments)

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from asset_server import own_cache, server, sha, tarred, zipped  # noqa: F401
from test_archives import ar

from alignkit.data import download as downloads
from alignkit.data import fetch

SVG = {f"svg/{i}.svg": b"<svg>%d</svg>" % i for i in range(5)}
MODEL = bytes(range(256)) * 64


def source(server, name: str, data: bytes, members: dict[str, str]) -> dict:
    server.files[name] = data
    return {
        "from": server.url(name), "file": name, "sha256": sha(data),
        "bytes": len(data), "members": members,
    }  # fmt: skip


def svg_entry(server, name="pictures.zip", **changes) -> dict:
    packed = {f"pkg/{path}": data for path, data in SVG.items()} | {"pkg/x.py": b"no"}
    first = source(server, name, zipped(packed), {"pkg/svg/*.svg": "svg/"}) | changes
    hashes = {path: sha(data) for path, data in SVG.items()}
    return {"tree": fetch.tree_hash(hashes), "sources": [first]}


def read(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_an_asset_is_fetched_once_and_then_needs_no_network(server, monkeypatch):
    entry = svg_entry(server)
    folder = fetch.ensure("pictures", entry)
    assert read(folder) == SVG  # and not pkg/x.py
    server.files.clear()
    monkeypatch.setattr(fetch, "_checked", set())  # as a new process
    monkeypatch.setattr(fetch, "file_hash", None)  # trusted by its stamp, not re-read
    assert fetch.ensure("pictures", entry) == folder
    assert len(server.requests) == 1


def test_the_second_source_serves_when_the_first_is_another_file(server):
    entry = svg_entry(server)
    server.files["pictures.zip"] = server.files["pictures.zip"][::-1]
    packed = {f"package/{path}": data for path, data in SVG.items()}
    second = source(
        server, "pictures.tgz", tarred(packed), {"package/svg/*": "svg/"}
    )
    entry["sources"].append(second)
    assert read(fetch.ensure("pictures", entry)) == SVG
    assert [name for name, _ in server.requests] == ["pictures.zip", "pictures.tgz"]


def test_when_all_sources_fail_each_is_named_with_its_reason(server):
    entry = svg_entry(server)
    other = svg_entry(server, "moved.zip")["sources"][0]
    hostile = svg_entry(server, "hostile.zip")["sources"][0]
    data = server.files["hostile.zip"] = zipped({"/etc/x": b""})
    hostile |= {"sha256": sha(data), "bytes": len(data)}
    entry["sources"] += [other, hostile]
    right = entry["sources"][0]["sha256"]
    server.files["pictures.zip"] = bytes(entry["sources"][0]["bytes"])
    del server.files["moved.zip"]
    with pytest.raises(fetch.FetchError) as raised:
        fetch.ensure("pictures", entry)
    message = str(raised.value)
    wrong = sha(bytes(entry["sources"][0]["bytes"]))
    assert f"pictures.zip: asset 'pictures': expected sha256 {right}" in message
    assert f"got {wrong}" in message
    assert "moved.zip: HTTP Error 404" in message
    assert "hostile.zip: member '/etc/x' has an absolute path" in message
    assert "ALIGNKIT_BRING" in message
    assert not any(path.is_dir() for path in (fetch.cache_dir() / "assets").iterdir())


def test_an_archive_that_unpacks_to_other_bytes_is_refused(server):
    entry = svg_entry(server, members={"pkg/svg/1.svg": "svg/1.svg"})
    with pytest.raises(fetch.FetchError, match="tree hash"):
        fetch.ensure("pictures", entry)


@pytest.mark.parametrize("archive_kept", [True, False])
@pytest.mark.parametrize("damage", ["changed", "removed", "added"])
def test_a_broken_file_is_noticed_and_mended(
    server, monkeypatch, archive_kept, damage
):
    entry = svg_entry(server)
    folder = fetch.ensure("pictures", entry)
    if damage == "changed":
        path = folder / "svg/3.svg"
        changed = path.stat().st_mtime_ns + 10**9  # clocks of file systems are coarse
        path.write_bytes(b"<svg>!</svg>")  # of the same size
        os.utime(path, ns=(changed, changed))
    elif damage == "removed":
        (folder / "svg/3.svg").unlink()
    else:
        (folder / "svg/9.svg").write_bytes(b"<svg/>")
    if not archive_kept:
        kept = fetch.cache_dir() / "archives/pictures/pictures.zip"
        kept.write_bytes(b"bad")
    monkeypatch.setattr(fetch, "manifest", lambda: {"pictures": entry})
    assert fetch.state()[0][:2] == ("pictures", "broken")
    monkeypatch.setattr(fetch, "_checked", set())
    with pytest.warns(UserWarning) as warned:
        assert read(fetch.asset("pictures")) == SVG
    said = [str(warning.message) for warning in warned]
    assert "was changed or damaged" in said[0]
    assert archive_kept or "pictures.zip is damaged and is removed" in said[1]
    assert len(server.requests) == (1 if archive_kept else 2)
    assert fetch.state()[0][:2] == ("pictures", "cached")


def test_a_damaged_file_is_named_where_the_manifest_lists_files(server, monkeypatch):
    data = zipped({"a.bin": b"a", "b.bin": b"b"})
    entry = {
        "files": {"a": sha(b"a"), "b": sha(b"b")},
        "sources": [source(server, "ab.zip", data, {"a.bin": "a", "b.bin": "b"})],
    }
    (fetch.ensure("ab", entry) / "b").write_bytes(b"c!")
    monkeypatch.setattr(fetch, "_checked", set())
    with pytest.warns(UserWarning, match=r"damaged \(b\)"):
        fetch.ensure("ab", entry)


def test_rehash_sees_damage_that_kept_size_and_time(server, monkeypatch):
    entry = svg_entry(server)
    monkeypatch.setattr(fetch, "manifest", lambda: {"pictures": entry})
    path = fetch.asset("pictures") / "svg/3.svg"
    before = path.stat()
    path.write_bytes(b"<svg>!</svg>")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetch.state()[0][1] == "cached"  # what a stamp cannot see
    assert fetch.state(rehash=True)[0][1] == "broken"
    assert fetch.state()[0][1] == "broken"  # and it is not forgotten


@pytest.mark.slow
def test_two_processes_at_once_download_once(server):
    entry = svg_entry(server)
    program = (
        "import json, sys; from alignkit.data.fetch import ensure\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(len(list(ensure('pictures', json.loads(sys.argv[1])).glob('svg/*'))))"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(entry)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 2
    for child in children:  # both are past their imports: let them go together
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.communicate(timeout=60)[0] for child in children] == ["5\n"] * 2
    assert len(server.requests) == 1


def test_a_brought_file_is_used_before_any_source(server, tmp_path, monkeypatch):
    entry = svg_entry(server)
    data = server.files.pop("pictures.zip")
    entry["sources"].insert(0, svg_entry(server, "far.zip")["sources"][0])
    brought = tmp_path / "my files"
    brought.mkdir()
    (brought / "pictures.zip").write_bytes(data)
    monkeypatch.setenv("ALIGNKIT_BRING", str(brought))
    assert read(fetch.ensure("pictures", entry)) == SVG
    assert server.requests == []


def test_a_wrong_brought_file_is_left_aside(server, tmp_path, monkeypatch):
    entry = svg_entry(server)
    (tmp_path / "pictures.zip").write_bytes(b"something else")
    monkeypatch.setenv("ALIGNKIT_BRING", str(tmp_path))
    with pytest.warns(UserWarning, match="left aside.*expected sha256"):
        assert read(fetch.ensure("pictures", entry)) == SVG
    assert (tmp_path / "pictures.zip").read_bytes() == b"something else"


def deb_entry(**changes) -> tuple[dict, bytes]:
    deb = ar({"data.tar.xz": tarred({"./usr/share/x/a.txt": b"A", "./b": b"B"}, "w:xz")})
    source = {
        "from": "apt:x-data=1.0", "file": "x-data_1.0_all.deb", "sha256": sha(deb),
        "bytes": len(deb), "members": {"usr/share/x/*": ""},
    } | changes  # fmt: skip
    return {"files": {"a.txt": sha(b"A")}, "sources": [source], "hint": "Ask Ann."}, deb


def apt_get(monkeypatch, deb: bytes) -> list:
    """apt-get that brings `deb`; what it was asked, and where."""
    asked = []

    def run(command, *, cwd, **settings):
        asked.append(command)
        (Path(cwd) / "x-data_1.0_all.deb").write_bytes(deb)
        return subprocess.CompletedProcess(command, 0, stdout="Get:1 x", stderr="")

    monkeypatch.setattr(downloads.subprocess, "run", run)
    return asked


def test_a_debian_package_is_brought_by_apt(monkeypatch):
    entry, deb = deb_entry()
    asked = apt_get(monkeypatch, deb)
    assert read(fetch.ensure("x", entry)) == {"a.txt": b"A"}  # and not b
    assert [command[:2] for command in asked] == [("apt-get", "download")]
    assert asked[0][-1] == "x-data=1.0"
    archives = fetch.cache_dir() / "archives" / "x"
    assert [path.name for path in archives.iterdir()] == ["x-data_1.0_all.deb"]


def test_another_debian_package_of_the_name_is_refused(monkeypatch):
    entry, _ = deb_entry()
    apt_get(monkeypatch, b"of another release")
    with pytest.raises(fetch.FetchError, match="another one: expected(.|\n)*Ask Ann"):
        fetch.ensure("x", entry)
    assert not list((fetch.cache_dir() / "archives" / "x").iterdir())


def test_without_apt_a_debian_package_is_brought_by_hand(tmp_path, monkeypatch):
    entry, deb = deb_entry()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(fetch.FetchError, match="apt-get is not installed here"):
        fetch.ensure("x", entry)
    (tmp_path / "x-data_1.0_all.deb").write_bytes(deb)
    monkeypatch.setenv("ALIGNKIT_BRING", str(tmp_path))
    assert read(fetch.ensure("x", entry)) == {"a.txt": b"A"}


def test_optional_assets_and_those_of_other_machines_are_left_out(server, monkeypatch):
    entry = svg_entry(server)
    shown = {"a": entry, "b": entry | {"optional": True},
             "c": entry | {"machine": "Plan9-mips"}}  # fmt: skip
    monkeypatch.setattr(fetch, "manifest", lambda: shown)
    assert [name for name, _, _ in fetch.state()] == ["a", "b"]
    assert list(fetch.fetch_all()) == ["a"] and list(fetch.fetch_all(["b"])) == ["b"]
    assert [state for _, state, _ in fetch.state()] == ["cached", "cached"]


def test_plain_files_and_nested_archives(server):
    inner = zipped({"weights": MODEL})
    packed = source(
        server, "a.whl", zipped({"pkg/model.zip": inner}), {"weights": "weights"}
    )
    plain = source(server, "weights", MODEL, {}) | {"as": "weights"}
    entry = {
        "files": {"weights": sha(MODEL)},
        "sources": [{"parts": [plain]}, packed | {"inside": "pkg/model.zip"}],
    }
    assert read(fetch.ensure("one", entry)) == {"weights": MODEL}
    del server.files["weights"]
    assert read(fetch.ensure("two", entry)) == {"weights": MODEL}


def test_unknown_names_and_the_shipped_manifest():
    with pytest.raises(ValueError, match="'cats' is unknown; known: openmoji, "):
        fetch.asset("cats")
    here = {name for name, entry in fetch.manifest().items()
            if entry.get("machine", fetch.machine()) == fetch.machine()}  # fmt: skip
    assert {(name, state) for name, state, _ in fetch.state()} == {
        (name, "missing") for name in here
    }
    assert {"openmoji", "stamps"} <= here < set(fetch.manifest())
    for name, entry in fetch.manifest().items():
        assert entry["licence"] and entry["note"], name
        assert ("tree" in entry) != ("files" in entry), name
        for one in entry["sources"]:
            for part in one.get("parts", [one]):
                assert re.fullmatch("[0-9a-f]{64}", part["sha256"]), name
                assert part["bytes"] > 0 and ("as" in part) != ("members" in part)
                kind = part["from"].split(":")[0]
                assert kind in ("pip", "npm", "hf", "https", "apt"), name
                assert kind != "apt" or "hint" in entry, name
                assert kind != "pip" or re.search(r"==\d", part["from"]), name


def test_cache_dir_follows_the_environment(tmp_path, monkeypatch):
    assert fetch.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("ALIGNKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch.cache_dir() == tmp_path / "alignkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch.cache_dir() == Path.home() / ".cache" / "alignkit"
