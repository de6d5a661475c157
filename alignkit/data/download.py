"""One downloader for all assets, and how a named package becomes an address.

A package is asked for by name through the user's own client, so that their index
or mirror answers; the bytes are then fetched here, resumed after a cut, and kept
only when their sha256 is the promised one.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm.auto import tqdm

TIMEOUT = 30.0  # seconds without a byte
TRIES = 4
WAIT = 0.5  # seconds before the second try; doubled each time
FINAL = (400, 401, 403, 404, 410)  # answers that another try would not change


class WrongHash(ValueError):
    """The bytes are not the ones that were promised."""


def file_hash(path: Path) -> str:
    """sha256 of a file, read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str, path: Path, *, sha256: str | None, size: int | None = None,
    label: str = "",
) -> None:
    """Fetch one file, resuming a `.part` left by an earlier try, and check it.

    Args:
        url: http(s) or file.
        path: where the whole file goes, once its hash is right.
        sha256, size: what the file must be; `size` in bytes. A sha256 of None takes
            any file, where nobody promises one.
        label: named in the progress bar and in errors.

    Raises: WrongHash when the file is another one (it is removed); OSError or
        http.client.HTTPException when the server fails every try.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    was_begun = part.exists()
    for attempt in range(TRIES):
        try:
            _receive(url, part, size, label)
            got = file_hash(part)
            if sha256 in (None, got):
                os.replace(part, path)
                return
            part.unlink()
            if not was_begun:
                break
            was_begun = False  # the old part was perhaps of another file: once more
        except (OSError, http.client.HTTPException) as error:
            is_final = getattr(error, "code", None) in FINAL or url.startswith("file:")
            if is_final or attempt == TRIES - 1:
                raise
            time.sleep(WAIT * 2**attempt)
    raise WrongHash(f"asset {label!r}: expected sha256 {sha256}, got {got}")


def _receive(url: str, part: Path, size: int | None, label: str) -> None:
    """One try: append to `part` what is missing."""
    if url.startswith("file:"):
        shutil.copyfile(urllib.request.url2pathname(urlsplit(url).path), part)
        return
    start = part.stat().st_size if part.exists() else 0
    if start == size:
        return  # all there: the hash decides
    with _open(url, start, part) as response:
        if response.status != 206:
            start = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else size
        if size and total != size:
            part.unlink(missing_ok=True)
            raise WrongHash(f"asset {label!r}: expected {size} bytes, offered {total}")
        with (
            part.open("ab" if start else "wb") as out,
            tqdm(total=total, initial=start, unit="B", unit_scale=True,
                 desc=label, leave=False) as bar,
        ):  # fmt: skip
            while chunk := response.read(2**18):
                out.write(chunk)
                bar.update(len(chunk))
            here = out.tell()
    if total is not None and here < total:
        raise ConnectionError(f"cut off after {here} of {total} bytes")


def _open(url: str, start: int, part: Path) -> http.client.HTTPResponse:
    """Ask for the bytes from `start`; a part that does not fit is thrown away."""
    headers = {"User-Agent": "alignkit", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT, context=_tls())
    except urllib.error.HTTPError as error:
        if error.code == 416:  # our part is longer than the file
            part.unlink()
        raise
    sent = response.headers.get("Content-Range", "")
    if response.status == 206 and not re.match(rf"bytes {start}-", sent):
        response.close()
        part.unlink()
        raise ConnectionError(f"asked for the bytes from {start}, was sent {sent!r}")
    return response


def _tls() -> ssl.SSLContext:
    """The system's certificates, and those that the user's clients are told of."""
    context = ssl.create_default_context()  # honours SSL_CERT_FILE itself
    for variable in ("REQUESTS_CA_BUNDLE", "PIP_CERT"):
        if place := os.environ.get(variable):
            kind = "capath" if Path(place).is_dir() else "cafile"
            context.load_verify_locations(**{kind: place})
    return context


def address(source: str) -> str:
    """The URL of a source, from the user's own package client.

    Args:
        source: `pip:NAME==VERSION`, or `pip:NAME==VERSION@PLATFORM` for the wheel of
            another system than this one; `npm:NAME@VERSION`, `hf:REPO@REVISION:FILE`,
            or an http(s) or file URL, given back as it is.

    Raises: OSError when the client is missing or finds nothing.
    """
    kind, _, rest = source.partition(":")
    if kind in ("https", "http", "file"):
        return source
    if kind == "pip":
        package, _, system = rest.partition("@")
        # pip asks for a target beside a platform; nothing is written there.
        other = ["--platform", system, "--target", "."] if system else []
        report = _ask(
            sys.executable, "-m", "pip", "install", "--dry-run", "--report", "-", "-q",
            "--ignore-installed", "--no-deps", "--only-binary=:all:", "--no-input",
            "--disable-pip-version-check", "--retries", "2", *other, package,
        )  # fmt: skip
        return json.loads(report)["install"][0]["download_info"]["url"]
    if kind == "npm":
        npm = shutil.which("npm")  # npm.cmd on Windows
        return _ask(npm or "npm", "view", rest, "dist.tarball").strip()
    if kind == "hf":
        from huggingface_hub import hf_hub_url

        place, _, file = rest.partition(":")
        repo, _, revision = place.partition("@")
        return hf_hub_url(repo, file, revision=revision or "main")
    raise ValueError(f"source {source!r}: need pip:, npm:, hf:, https:, http: or file:")


def from_apt(package: str, path: Path, *, sha256: str) -> None:
    """Have apt-get bring the Debian package `NAME` or `NAME=VERSION` to `path`.

    apt fetches it itself, because its mirrors and proxies are known to it alone. No
    rights are needed and nothing is installed.

    Raises: OSError where there is no apt-get, or it finds no such package; WrongHash
        where this system's package of that name is another one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        _ask("apt-get", "download", "-o", "Acquire::Retries=2", package, at=folder)
        for found in Path(folder).glob("*.deb"):
            got = file_hash(found)
            if got != sha256:
                raise WrongHash(f"this system's {found.name} is another one: "
                                f"expected sha256 {sha256}, got {got}")
            os.replace(found, path)
            return
    raise OSError(f"apt-get brought no package for {package}")


def _ask(*command: str, at: str | None = None) -> str:
    """Standard output of a package client; OSError with its last words."""
    client = "pip" if "pip" in command else Path(command[0]).stem
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=1800 if at else 300, cwd=at,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise OSError(f"{client} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise OSError(f"{client} did not answer in time") from None
    if done.returncode or not done.stdout.strip():
        words = done.stderr.strip().splitlines() or ["no answer"]
        raise OSError(f"{client} found no address: {words[-1]}")
    return done.stdout
