"""Lists of URLs (Conceptual Captions): pictures fetched side by side, politely.

A shard is a thousand lines of the list, whole or not begun: after a cut the script
goes on at the next shard. What could not be had stands in the shard's index with the
reason and is counted at the end; nothing is put in its place.
"""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from common import DataSet, arguments, collect, report
from tqdm.auto import tqdm

from alignkit.data.shard_files import write_manifest, write_shard
from alignkit.data.shards import Sample, Skipped
from alignkit.data.writing import clear, fits, only_writer

LINES = 1000  # a shard
WORKERS, PER_HOST = 32, 2  # pictures asked for at a time, in all and of one server
TIMEOUT, TRIES, WAIT = 15.0, 2, 1.0  # seconds
LARGEST = 20 * 2**20  # bytes of a picture
OPTED_OUT = {"noai", "noimageai", "noindex", "noimageindex"}  # X-Robots-Tag
STARTS = {b"\xff\xd8": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif",
          b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A picture of the list."""

    key: str
    url: str
    caption: str
    split: str


def columns(path: Path) -> Iterator[tuple[int, str, str]]:
    """(number, first, second) column of each line of a list without a header."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file):
            first, _, second = line.rstrip("\r\n").partition("\t")
            yield number, first.strip(), second.strip()


class Hosts:
    """Lets at most PER_HOST threads talk to one server."""

    def __init__(self):
        self.lock, self.doors = threading.Lock(), {}

    def door(self, url: str) -> threading.Semaphore:
        """To be held while `url` is asked for."""
        with self.lock:
            host = urlsplit(url).netloc
            return self.doors.setdefault(host, threading.Semaphore(PER_HOST))


def picture(line: Line, hosts: Hosts) -> Sample | Skipped:
    """The picture of a line, or why there is none."""
    if not line.url.startswith(("http://", "https://")):  # never file:
        return Skipped(line.key, "not an http address")
    for attempt in range(TRIES):
        try:
            with hosts.door(line.url):
                raw = ask(line.url)
            break
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}"
            if error.code < 500 and error.code != 429:
                return Skipped(line.key, reason)
        except PermissionError as error:
            return Skipped(line.key, str(error))
        except TimeoutError:
            reason = "no answer in time"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"no connection: {getattr(error, 'reason', error)}"
        if attempt + 1 < TRIES:
            time.sleep(WAIT)
    else:
        return Skipped(line.key, reason)
    ending = next((STARTS[start] for start in STARTS if raw.startswith(start)), None)
    if ending is None:
        return Skipped(line.key, "the answer is not a picture")
    return Sample(line.key, {ending: raw}, [line.caption], split=line.split)


def ask(url: str) -> bytes:
    """The bytes at `url`. Raises PermissionError where the server wants no such use."""
    request = urllib.request.Request(url, headers={"User-Agent": "alignkit (research)"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        tags = ",".join(answer.headers.get_all("X-Robots-Tag") or [])
        if OPTED_OUT & {tag.split(":")[-1].strip().lower() for tag in tags.split(",")}:
            raise PermissionError("its server opted out (X-Robots-Tag)")
        raw = answer.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise PermissionError(f"larger than {LARGEST} bytes")
    return raw


def run_urls(about: DataSet, lines, argv: list[str] | None = None) -> None:
    """Bring the list, then the pictures of `lines(files)`, shard by shard."""
    args = arguments(about, argv)
    files, records = collect(about, args)
    with only_writer(args.out):
        count = write_all(islice(lines(files), args.limit), args.out)
        clear(args.out, count)  # of a run with a higher limit
        provenance = {"name": about.name, "kind": "real", "licence": about.licence,
                      "source": about.page, "recipe": about.recipe}
        write_manifest(args.out, count, provenance, records)
    report(args.out)


def write_all(lines: Iterable[Line], out: Path) -> int:
    """Write the shards that are not whole yet; how many there are.

    Raises FileExistsError where one is there that holds other lines.
    """
    lines, hosts, count = iter(lines), Hosts(), 0
    with ThreadPoolExecutor(WORKERS) as pool, tqdm(unit="picture") as bar:
        while chunk := list(islice(lines, LINES)):
            if not fits(out, count, [(line.key, [line.caption]) for line in chunk]):
                found = pool.map(lambda line: picture(line, hosts), chunk)
                write_shard(found, out, count)
            count += 1
            bar.update(len(chunk))
    return count
