"""Batches that workers make ahead: the same bits, the same errors, nothing left behind."""

import multiprocessing
import os
import pickle
import random
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from training_runs import Centred, Noisy, assert_same, pairs, train, validate

from alignkit.data import Lazy, Pairs, Tokens, open_shards, write_shards
from alignkit.data.samples import Sample
from alignkit.parts import DualEncoder, Settings
from alignkit.training import Budget, History, NonFiniteLoss, feeding, fit, seed_all
from alignkit.training.feeding import Feed, Recipe

SHORT = Budget(steps=6, batch_size=16, lr=1e-2)
pytestmark = pytest.mark.slow  # they start processes


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    yield
    until = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def run(kind=Noisy, workers: int = 2, rows: Pairs | None = None, budget: Budget = SHORT):
    """(method, history)."""
    rows = pairs() if rows is None else rows
    seed_all(5)
    method = kind(Settings(width=3), rows)
    return method, fit(method, rows, budget, seed=3, workers=workers)


# The same bits ------------------------------------------------------------------------
class Careless(Noisy):
    """Draws from all three global generators in collate, and goes on in the forward pass."""

    def collate(self, rows, generator):
        batch = super().collate(rows, generator)
        noise = float(np.random.rand()) + random.random()
        return {**batch, "image_features": F.dropout(batch["image_features"], 0.2) + noise}


@pytest.mark.parametrize("kind", [Noisy, Careless])
def test_any_number_of_workers_gives_the_same_bits(kind):
    method, history = run(kind, 0)
    assert len(method.seen) == len(history.steps) > 0
    for workers in (1, 2):
        other, told = run(kind, workers)
        assert_same(other.state_dict(), method.state_dict())
        assert told.steps == history.steps
        assert not other.seen  # its collate did not run here


def test_validation_stages_and_selection_go_on_as_without(tmp_path):
    method, history = train()
    other, told = train(tmp_path, workers=2)
    assert_same(other.state_dict(), method.state_dict())
    assert told.steps == history.steps and told.validation == history.validation


def test_what_is_drawn_between_the_steps_is_the_same():
    """A batch that is asked for leaves the global generators where collate left them."""
    rows, left = pairs(), []
    for workers in (0, 2):
        seed_all(1)
        feed = Feed(Recipe(Careless(Settings(width=3), rows), rows, 8, 0, 0), range(4, 6),
                    workers)
        for step in (4, 5):
            feed.batch(step)
            left.append((torch.rand(1).item(), np.random.rand(), random.random()))
        feed.close()
    assert left[:2] == left[2:] and left[0] != left[1]


def test_the_waits_are_of_each_step():
    _, history = run(workers=2)
    assert len(history.waits) == len(history.steps)
    assert 0 < history.waited < history.seconds
    assert History().waited == 0


# Pictures and shards --------------------------------------------------------------------
class Sees(DualEncoder):
    """Decodes and crops pictures in collate, and tells in which process."""

    def build(self, settings, pairs):
        super().build(Settings(towers={"pixels": "pixels", "text": "text_features"}, width=3),
                      pairs.with_columns(pixels=torch.zeros(len(pairs), 75)))
        self.settings, self.processes = Settings(
            towers={"pixels": "pixels", "text": "text_features"}, width=3), set()

    def collate(self, rows, generator):
        at = torch.randint(4, (len(rows), 2), generator=generator).tolist()
        crops = [np.asarray(picture)[y:y + 5, x:x + 5]
                 for picture, (y, x) in zip(rows["image"], at, strict=True)]
        pixels = torch.from_numpy(np.stack(crops)).flatten(1).float() / 255
        return {**rows.batch(), "pixels": pixels, "process": os.getpid(),
                "tokens": Tokens(pixels[:, :, None], pixels > 0.5)}

    def encode(self, batch):
        self.processes.add(batch["process"])
        assert isinstance(batch["tokens"], Tokens) and list(batch)[0] == "image"
        assert isinstance(batch["image"], Lazy) and len(batch["image"]) == len(batch["ids"])
        assert batch["image"][0].size == (8, 8)
        return super().encode(batch)


def photographs(folder, n: int = 20) -> Pairs:
    draw = np.random.default_rng(0)
    samples = []
    for k in range(n):
        path = folder / f"{k}.png"
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        samples.append(Sample(key=f"p{k:02d}", files={"png": path}, captions=[f"picture {k}"]))
    write_shards(samples, folder / "shards", name="noise", licence="none", source="drawn",
                 items_per_shard=6)
    rows = open_shards(folder / "shards")
    return rows.with_features(text_features=torch.randn(n, 6, generator=seed_all(0)))


def test_pictures_out_of_shards_are_decoded_in_the_workers(tmp_path):
    rows = photographs(tmp_path)
    budget = Budget(steps=8, batch_size=5)
    here, _ = run(Sees, 0, rows, budget)
    there, _ = run(Sees, 2, rows, budget)
    assert_same(there.state_dict(), here.state_dict())
    assert here.processes == {os.getpid()}
    assert len(there.processes) == 2 and os.getpid() not in there.processes


# Errors ---------------------------------------------------------------------------------
def test_a_damaged_picture_is_told_as_without_workers_and_at_its_step(tmp_path):
    rows = photographs(tmp_path)
    tar = tmp_path / "shards" / "00002.tar"
    raw = bytearray(tar.read_bytes())
    place = rows["image"].sources[15]
    raw[place.offset + 40] ^= 1
    tar.write_bytes(raw)
    budget = Budget(steps=8, batch_size=5)
    found = []
    for workers in (0, 2):
        with pytest.raises(ValueError, match="p15.png: its bytes have changed") as error:
            run(Sees, workers, rows, budget)
        found.append(error.value)
    assert str(found[0]) == str(found[1])
    assert found[0].__notes__ == found[1].__notes__ and "in row" in found[1].__notes__[0]
    assert "collate" in str(found[1].__cause__)  # where in the worker


def test_a_loss_that_is_not_finite_names_the_same_rows():
    rows = pairs()
    rows["text_features"][7] = torch.nan
    said = []
    for workers in (0, 2):
        with pytest.raises(NonFiniteLoss) as error:
            run(workers=workers, rows=rows)
        said.append(str(error.value))
    assert said[0] == said[1] and "rows [" in said[0]


class Odd(Exception):
    """Pickle cannot make it anew."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Wrong(Noisy):
    how = ""

    def collate(self, rows, generator):
        batch = rows.batch()
        if self.how == "buffer":
            batch["x"] = self.average.sum()
        elif self.how == "weights":
            batch["x"] = self.heads["image"].weight.sum()
        elif self.how == "values":
            batch["x"] = self.heads["image"].weight.tolist()
        elif self.how == "gradient":
            batch["x"] = torch.ones(2, requires_grad=True)
        elif self.how == "function":
            batch["x"] = [lambda: 0]
        elif self.how == "odd":
            raise Odd(1, 2)
        elif self.how == "killed" and multiprocessing.parent_process():
            os.kill(os.getpid(), 9)
        return batch


@pytest.mark.parametrize("how, kind, said", [
    ("buffer", ValueError, "reads the buffer 'average', which training changes.*workers=0"),
    ("weights", TypeError, "'x' comes from weights.*workers=0"),
    ("values", Exception, "(?s)meta.*have no values.*workers=0"),
    ("gradient", TypeError, "'x' comes from weights"),
    ("function", TypeError, "'x', a function, cannot be sent"),
    ("odd", RuntimeError, "Odd: 1 and 2"),
    ("killed", RuntimeError, "(?s)worker.*memory was short"),
])
def test_what_cannot_be_made_ahead_is_refused(how, kind, said, monkeypatch):
    monkeypatch.setattr(Wrong, "how", how)
    with pytest.raises(kind) as error:
        run(Wrong)
    words = "\n".join([str(error.value), *getattr(error.value, "__notes__", ())])
    assert re.search(said, words), words


def test_a_buffer_that_stays_may_be_read():
    assert_same(run(Centred)[0].state_dict(), run(Centred, 0)[0].state_dict())


def test_shared_memory_that_is_too_small_is_told(monkeypatch):
    full = SimpleNamespace(f_bavail=1, f_frsize=512)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    monkeypatch.setattr(feeding, "SHARED", "/")
    with pytest.raises(OSError, match="does not fit in /.*shm-size"):
        run()


def test_an_interruption_ends_the_workers():
    class Stops(Noisy):
        def after_step(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Stops)


@pytest.mark.parametrize("workers", [-1, 1.5, "2"])
def test_a_number_of_workers_that_is_none(workers):
    with pytest.raises(ValueError, match="workers must be a whole number from 0 on"):
        run(workers=workers)


def test_what_is_sent_where_nothing_can_be_forked():
    """On macOS and Windows: the method without weights, and the rows."""
    rows = pairs()
    seed_all(5)
    method = Noisy(Settings(width=3), rows)
    ahead = pickle.loads(pickle.dumps(feeding._Ahead(Recipe(method, rows, 16, 3, 0))))
    made, lazy, read, _ = ahead[4]
    wanted = Feed(Recipe(method, rows, 16, 3, 0), range(6)).batch(4)
    assert made.keys() == wanted.keys() and not lazy and not read
    assert torch.equal(made["text_features"], wanted["text_features"])
    assert all(weight.is_meta for weight in ahead.recipe.method.parameters())


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    """Also those that have more to send than the pipe holds: they would wait for ever."""
    told = tmp_path / "workers"

    class Many(Noisy):
        def collate(self, rows, generator):
            with told.open("a") as file:
                file.write(f"{os.getpid()}\n")
            return super().collate(rows, generator) | {"long": [f"{k:099d}" for k in range(1000)]}

        def after_step(self):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        run(Many)
    os.waitpid(child, 0)
    time.sleep(0.5)  # for the last line
    workers = {int(line) for line in told.read_text().split()}
    assert len(workers) == 2
    left, until = workers, time.monotonic() + 20
    while left and time.monotonic() < until:
        time.sleep(0.1)
        left = {worker for worker in workers if Path(f"/proc/{worker}").exists()}
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left
