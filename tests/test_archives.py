"""Unpacking archives: hostile ones are refused, Debian packages are read."""

import tarfile
import zipfile

import pytest
from asset_server import tarred, zipped

from alignkit.data.archives import UnsafeArchive, unpack


def special(kind: bytes, name="bad", link="../../etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_link() -> bytes:
    info = zipfile.ZipInfo("bad")
    info.external_attr = 0o120777 << 16
    return zipped({info: b"/etc/passwd"})


def zip_bomb() -> bytes:
    """A member that declares 5 bytes and holds 1000."""
    data = zipped({"bad": b"x" * 1000})
    return data.replace((1000).to_bytes(4, "little"), (5).to_bytes(4, "little"))


HOSTILE = {
    "absolute": (zipped({"/etc/x": b""}), "absolute"),
    "climbs": (zipped({"a/../../x": b""}), "climbs"),
    "drive": (zipped({"C:/x": b""}), "drive letter"),
    "backslash": (zipped({"..\\x": b""}), r"\\ or NUL"),
    "link in zip": (zip_link(), "symbolic link"),
    "absolute in tar": (tarred({"/etc/x": b""}), "absolute"),
    "climbs in tar": (tarred({"../x": b""}, "w:xz"), "climbs"),
    "symbolic link": (tarred({}, extra=[special(tarfile.SYMTYPE)]), "symbolic link"),
    "hard link": (tarred({}, extra=[special(tarfile.LNKTYPE)]), "hard link"),
    "device": (tarred({}, extra=[special(tarfile.CHRTYPE)]), "a device"),
    "pipe": (tarred({}, extra=[special(tarfile.FIFOTYPE)]), "a device"),
    "twice": (tarred({"a": b"1", "./a": b"2"}), "twice"),
    "too many": (tarred({f"{i}": b"" for i in range(40)}), "more than 30 members"),
    "too big": (zipped({"a": bytes(60_000), "b": bytes(60_000)}), "100000 bytes"),
    "too big in tar": (tarred({"a": bytes(200_000)}), "100000 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path, case):
    data, reason = HOSTILE[case]
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UnsafeArchive, match=reason):
        unpack(
            tmp_path / "a", tmp_path / "in" / "out", {"*": ""},
            max_bytes=100_000, max_members=30,
        )  # fmt: skip
    outside = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all("out" in path.parts or path.name == "a" for path in outside)


def test_a_member_longer_than_declared_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(zip_bomb())
    with pytest.raises((UnsafeArchive, zipfile.BadZipFile)):
        unpack(tmp_path / "a", tmp_path / "out", {"bad": "bad"})
    assert (tmp_path / "out/bad").stat().st_size <= 5


def test_unwanted_members_are_checked_too(tmp_path):
    (tmp_path / "a").write_bytes(zipped({"good": b"1", "../bad": b"2"}))
    with pytest.raises(UnsafeArchive, match="climbs"):
        unpack(tmp_path / "a", tmp_path / "out", {"good": "good"})


def test_targets_that_differ_in_case_only_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(zipped({"x/a": b"1", "x/A": b"2"}))
    with pytest.raises(UnsafeArchive, match="two members"):
        unpack(tmp_path / "a", tmp_path / "out", {"x/*": ""})


def test_a_wanted_member_that_is_missing_is_named(tmp_path):
    (tmp_path / "a").write_bytes(zipped({"x": b"1"}))
    with pytest.raises(FileNotFoundError, match=r"no member y/\*"):
        unpack(tmp_path / "a", tmp_path / "out", {"x": "x", "y/*": ""})
    (tmp_path / "b").write_bytes(b"neither of them")
    with pytest.raises(ValueError, match="not a zip, tar or deb"):
        unpack(tmp_path / "b", tmp_path / "out2", {"x": "x"})


def ar(entries: dict[str, bytes]) -> bytes:
    """An ar file written from deb(5)."""
    out = b"!<arch>\n"
    for name, data in entries.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    return out


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_debian_package_is_unpacked(tmp_path, kind):
    files = {"./usr/share/stamps/cat.txt": b"A cat", "./usr/bin/x": b"no"}
    folders = [special(tarfile.DIRTYPE, name, "") for name in ("./", "./usr/")]
    entries = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": b"odd",  # an odd length, so that it is padded
        f"data.tar.{kind}": tarred(files, f"w:{kind}", folders),
        "later": b"?",
    }
    (tmp_path / "a.deb").write_bytes(ar(entries))
    written = unpack(
        tmp_path / "a.deb", tmp_path / "out", {"usr/share/stamps/*": "stamps/"}
    )
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "out/stamps/cat.txt"
    ]
    assert written[0].read_bytes() == b"A cat"


def test_a_hostile_or_damaged_debian_package_is_refused(tmp_path):
    path = tmp_path / "a.deb"
    path.write_bytes(ar({"data.tar.gz": tarred({"./../x": b""})}))
    with pytest.raises(UnsafeArchive, match="climbs"):
        unpack(path, tmp_path / "out", {"*": ""})
    for data in (ar({"debian-binary": b"2.0\n"}), b"!<arch>\n" + b"?" * 60):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a Debian package"):
            unpack(path, tmp_path / "out", {"*": ""})
