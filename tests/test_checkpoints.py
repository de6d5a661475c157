"""Checkpoints: torn, foreign, of a killed run; and two processes."""

import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_runs
from training_runs import BUDGET, LONG, Noisy, assert_same, dual, pairs, train

from alignkit.parts import Settings
from alignkit.training import Budget, batch_rows, checkpoint, fit

SHORT = Budget(steps=6, batch_size=16, lr=1e-2)


def saved(folder: Path, steps=(1, 2)) -> None:
    for step in steps:
        checkpoint.save(folder, step, {"x": torch.full((300,), float(step))}, {"step": step})


def test_only_the_newest_two_checkpoints_stay(tmp_path):
    saved(tmp_path, (1, 2, 3))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-{n:09d}.{end}" for n in (2, 3) for end in ("json", "safetensors")]
    tensors, facts = checkpoint.newest(tmp_path)
    assert facts["step"] == 3 and torch.equal(tensors["x"], torch.full((300,), 3.0))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw)


TEARS = {
    "tensors cut short": lambda f: cut(f / "step-000000002.safetensors"),
    "one bit of the tensors": lambda f: flip(f / "step-000000002.safetensors"),
    "no tensors": lambda f: (f / "step-000000002.safetensors").unlink(),
    "JSON cut short": lambda f: cut(f / "step-000000002.json"),
    "JSON empty": lambda f: (f / "step-000000002.json").write_bytes(b""),
    "JSON of zeros": lambda f: (f / "step-000000002.json").write_bytes(bytes(50)),
    "not a checkpoint": lambda f: (f / "step-000000002.json").write_text('{"a": 1}'),
    "tensors only": lambda f: (f / "step-000000002.json").unlink(),
}


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS)
def test_of_a_torn_checkpoint_the_one_before_is_found(tmp_path, tear):
    saved(tmp_path)
    tear(tmp_path)
    tensors, facts = checkpoint.newest(tmp_path)
    assert facts["step"] == 1 and torch.equal(tensors["x"], torch.ones(300))


def test_leftovers_of_a_killed_save_do_no_harm(tmp_path):
    saved(tmp_path)
    (tmp_path / "step-000000003.part").write_bytes(b"half")
    (tmp_path / "step-000000003.json.part").write_text('{"step"')
    assert checkpoint.newest(tmp_path)[1]["step"] == 2
    saved(tmp_path, (3,))
    assert checkpoint.newest(tmp_path)[1]["step"] == 3
    assert not list(tmp_path.glob("*.part"))


def test_nothing_to_resume(tmp_path):
    assert checkpoint.newest(tmp_path / "none") is None
    saved(tmp_path, (1,))
    cut(tmp_path / "step-000000001.safetensors")
    assert checkpoint.newest(tmp_path) is None


OTHERS = {
    "seed": lambda m, p: (m, p, {"seed": 1}),
    "budget": lambda m, p: (m, p, {"budget": replace(SHORT, save_every=2, lr=1.0)}),
    "method": lambda m, p: (Noisy(Settings(width=3), p), p, {}),
    "settings": lambda m, p: (dual(p, temperature=0.1), p, {}),
    "rows": lambda m, p: (m, p.select(torch.arange(50).flip(0)), {}),
    "data": lambda m, p: (m, p.with_columns(text_features=-p["text_features"]), {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_folder_of_another_run_is_refused(tmp_path, name):
    budget = replace(SHORT, save_every=2)
    fit(dual(), pairs(), budget, folder=tmp_path)
    method, rows, change = OTHERS[name](dual(), pairs())
    with pytest.raises(ValueError, match=rf"holds another run \(it differs in .*{name}"):
        fit(method, rows, **{"budget": budget, **change}, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "kill_with_workers"])
def test_a_run_killed_twenty_times_ends_with_the_same_bits(tmp_path, how):
    """SIGKILL: no handler runs, nothing is flushed; half of them in a checkpoint's write.
    The run that is not killed makes its batches itself; of the killed ones each life has
    another number of workers, or none."""
    whole_folder, killed_folder = tmp_path / "whole", tmp_path / "killed"
    killed_folder.mkdir()
    method, history = train(whole_folder, budget=LONG)
    run_script(how, killed_folder)
    end = torch.load(killed_folder / "end.pt")
    assert end["killed"] == 20
    assert_same(end["weights"], method.state_dict())
    assert end["steps"] == history.steps and end["validation"] == history.validation
    steps = [row["step"] for row in history.validation]
    best = max(history.validation[2:], key=lambda row: row["figure"])
    assert len(steps) == 27 and best["step"] != LONG.steps  # the case has a best to keep
    # The newest checkpoint is of the last step: weights, moving average and optimiser.
    (tensors, facts), (wanted, other) = map(checkpoint.newest, (killed_folder, whole_folder))
    assert facts["step"] == other["step"] == LONG.steps
    assert {k.split(".")[0] for k in tensors} == {"model", "optimizer", "best"}
    assert_same(tensors, wanted)


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path):
    saved(tmp_path, (1, 2))
    child = os.fork()
    if child == 0:  # a limit on files cannot be raised again, so in a process of its own
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
        try:
            saved(tmp_path, (3,))
        except OSError as error:
            os._exit(0 if "disk" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert checkpoint.newest(tmp_path)[1]["step"] == 2
    assert not list(tmp_path.glob("*.part"))  # nor does the half fill the disk further
    assert len(list(tmp_path.iterdir())) == 4


def run_script(*arguments, launch=()) -> None:
    command = [sys.executable, *launch, training_runs.__file__, *map(str, arguments)]
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, timeout=170,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.slow
def test_two_processes_end_with_equal_weights(tmp_path):
    run_script("joined", tmp_path, launch=[
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])
    first, second = (torch.load(tmp_path / f"end-{rank}.pt") for rank in range(2))
    assert_same(first["weights"], second["weights"])
    for step in range(8):  # the halves of the batch that one process would have seen
        whole = [pairs().ids[i] for i in batch_rows(50, BUDGET.batch_size, 3, 0, step)]
        assert first["seen"][step] == whole[::2] and second["seen"][step] == whole[1::2]
    assert sum(first["loss"][-4:]) < 0.8 * sum(first["loss"][:4])
    alone, _ = train()
    assert not torch.equal(alone.heads["text"].weight, first["weights"]["heads.text.weight"])
