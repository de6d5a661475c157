"""The pieces of a run, in one process or several, each kept on disk as it comes."""

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm.auto import tqdm

from alignkit.claims.claim import Claim
from alignkit.claims.results import peak_memory_mb
from alignkit.claims.runs import PILOT_SEEDS, Runs

Remake = Callable[[], Sequence[Claim]]


class Work:
    """Pieces of a paper's run in a folder. `remake() -> claims` makes them in a process of
    its own (it must be picklable); without it, or with one job, all runs here. long: a
    piece takes many minutes, so its arms leave checkpoints and show bars (one job only)."""

    def __init__(self, claims: Sequence[Claim], folder: Path, jobs: int = 1,
                 remake: Remake | None = None, said: str = "", long: bool = False):
        self.runs = Runs(claims, unfinished=folder / "unfinished" if long else None)
        self.folder, self.said = folder, said
        self.jobs, self.remake = jobs if remake else 1, remake

    def tune(self) -> dict[str, dict]:
        """Choose each arm's point of the grid, those that others start from first; whether
        the loss falls: arm -> points -> True, False or None."""
        falls = {}
        for arms in self.runs.in_rounds():
            pieces = [("tuning", arm, seed) for arm in arms
                      for seed in self.runs.tuning_seeds(arm)]
            found = dict(zip(pieces, self._all(pieces, "tuning")))
            for arm in arms:
                rows = [found["tuning", arm, seed] for seed in self.runs.tuning_seeds(arm)]
                points = [repr(point) for point in self.runs.named[arm].grid]
                falls[arm] = [rows[0][point]["falls"] for point in points]
                if len(points) > 1:
                    self.runs.choose(arm, [sum(row[point]["score"] for row in rows)
                                           for point in points])
        return falls

    def pilots(self) -> list[dict]:
        """`Runs.pilot` of the pilot's seeds."""
        return self._all([("pilot", "", seed) for seed in PILOT_SEEDS], "pilot")

    def seeds(self, seeds: Sequence[int], only: str = "") -> list[dict]:
        """Figures by claim, and with the null; of one claim without its null if named."""
        return self._all([("seed", only, seed) for seed in seeds], "seeds")

    def seconds(self) -> float:
        """What all kept pieces took, summed over processes."""
        return sum(json.loads(path.read_text("utf-8"))["seconds"]
                   for path in self.folder.glob("*.json"))

    def _all(self, pieces: list[tuple], what: str) -> list[dict]:
        missing = [piece for piece in pieces if not self._whole(piece)]
        bar = tqdm(total=len(pieces), initial=len(pieces) - len(missing),
                   desc=f"{self.said} {what}".strip())
        with bar:
            if self.jobs == 1 or len(missing) < 2:
                for piece in missing:
                    self._make(piece)
                    bar.update()
            else:
                self._in_processes(missing, bar)
        return [json.loads(self._path(piece).read_text("utf-8")) for piece in pieces]

    def _in_processes(self, pieces: list[tuple], bar: tqdm) -> None:
        # A fresh interpreter: forking one whose torch has threads may hang.
        pool = ProcessPoolExecutor(self.jobs, get_context("spawn"), _start,
                                   (self.remake, self.folder, self.runs.tuned))
        try:
            for done in as_completed([pool.submit(_piece, piece) for piece in pieces]):
                done.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)

    def _path(self, piece: tuple) -> Path:
        return self.folder / ("-".join(str(part) for part in piece if part != "") + ".json")

    def _whole(self, piece: tuple) -> bool:
        """Whether the piece is there, with every point of today's grid."""
        path = self._path(piece)
        if not path.is_file() or piece[0] != "tuning":
            return path.is_file()
        there = json.loads(path.read_text("utf-8"))
        return all(repr(point) in there for point in self.runs.named[piece[1]].grid)

    def _make(self, piece: tuple) -> None:
        """Make a piece, time it, and write it whole or not at all."""
        (kind, name, seed), path = piece, self._path(piece)
        before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        started = time.perf_counter()
        made = before | getattr(self, f"_{kind}")(name, seed, before)
        made["seconds"] = before.get("seconds", 0) + time.perf_counter() - started
        made["memory"] = peak_memory_mb()
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(made), "utf-8")
        os.replace(part, path)
        self.runs.forget()

    def _tuning(self, arm: str, seed: int, before: dict) -> dict:
        return {repr(point): self.runs.try_point(arm, point, seed)
                for point in self.runs.named[arm].grid if repr(point) not in before}

    def _pilot(self, _: str, seed: int, before: dict) -> dict:
        return {"claims": self.runs.pilot(seed)}

    def _seed(self, only: str, seed: int, before: dict) -> dict:
        claims = [c for c in self.runs.claims if only in ("", c.name)]
        made = {"seed": seed, "figures": {c.name: self.runs.figures(c, seed)
                                          for c in claims}}
        if not only:
            made["null"] = {c.name: self.runs.figures(c, seed, null=True) for c in claims}
        return made


_HERE: list[Work] = []  # of a worker process


def _start(remake: Remake, folder: Path, tuned: dict) -> None:
    torch.set_num_threads(1)
    _HERE[:] = [Work(remake(), folder)]
    _HERE[0].runs.tuned = tuned


def _piece(piece: tuple) -> None:
    _HERE[0]._make(piece)
