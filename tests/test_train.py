"""`alignkit train`: from the command to its files; a kill; several processes, whole and in
shards, one of which breaks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_runs
from safetensors.torch import load_file
from training_runs import DEEP, assert_same, pairs, train_deep

from alignkit.claims import Runs, paper
from alignkit.claims.train import train
from alignkit.cli import main
from alignkit.parts import DualEncoder, Settings
from alignkit.parts.large_batch.plain import TILE
from alignkit.training import Budget, batch_rows, checkpoint, estimate, logits_memory

ROOT = Path(__file__).parents[1]
TINY = ("train", "shared-space", "--scale", "tiny")


def python(*arguments, **kind) -> subprocess.Popen:
    """Python started in a process of its own, with this checkout's package."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, *map(str, arguments)], text=True, **kind,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths})


def finished(*arguments) -> str:
    """What a Python process that went well said on stdout."""
    run = python(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                 start_new_session=True)
    try:
        said, errors = run.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # its own processes too
        raise
    assert run.returncode == 0, said[-2000:] + errors[-4000:]
    return said


# The command --------------------------------------------------------------------------
def test_the_command_leaves_its_files(tmp_path, capsys):
    out = tmp_path / "a" / "b"
    assert main([*TINY, "--arm", "random", "--steps", "12", "--seed", "3", "--chunk", "40",
                 "--batch-size", "100", "--precision", "bf16", "--lr", "2e-3",
                 "--workers", "2",
                 "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoints", "method.safetensors", "train.json"]
    report = json.loads((out / "train.json").read_text())
    changed = {"steps": 12, "chunk": 40, "batch_size": 100, "precision": "bf16", "lr": 2e-3}
    assert changed.items() <= report["budget"].items()
    assert (report["arm"], report["seed"], report["run"]) == ("random", 3, "one process")
    assert report["history"]["steps"] == 12 and report["versions"]["torch"]
    assert len(report["data"]["hash"]) == 64 and report["rows"]["test"] > 10
    weights = load_file(out / "method.safetensors")
    assert weights.keys() == checkpoint_weights(out).keys()
    (figure, value), = report["figures"].items()
    assert f"{figure}  {value:.4g}" not in said and "written to" in said
    assert "no verdict is read off scale tiny; figures are not shown" in said
    assert "estimate: about" in said and "logits of 100 rows" in said
    assert "batches from 2 workers" in said and report["history"]["waited"] >= 0


def checkpoint_weights(out: Path) -> dict:
    tensors, _ = checkpoint.newest(out / "checkpoints")
    return {k.removeprefix("model."): v for k, v in tensors.items()
            if k.startswith("model.")}


def test_it_is_the_run_of_the_claim(tmp_path):
    """The same split, start, order and choice of weights as in `reproduce`."""
    module = paper("shared-space")
    claims = module.claims(module.data("tiny"), "tiny")
    figures = Runs(claims).figures(claims[0], 2)
    for arm in figures:
        report = train("shared-space", tmp_path / arm, "tiny", arm=arm, seed=2)
        assert report["figures"] == {claims[0].figure: figures[arm]}


def test_a_measure_that_needs_other_arms_gives_way_to_retrieval(tmp_path, monkeypatch):
    module = paper("shared-space")
    real = module.claims

    def claims(pairs, scale):
        claim, = real(pairs, scale)
        return [replace(claim, measure=lambda arms: {
            "pretrained": arms["pretrained"].history.seconds - arms["random"].history.seconds
        })]

    monkeypatch.setattr(module, "claims", claims)
    report = train("shared-space", tmp_path, "tiny", changes={"steps": 2})
    assert {"hit@1", "hit@10"} <= report["figures"].keys()


WRONG = {
    ("--claim", "nothing"): ("claim must be one of linear-map", "'nothing'"),
    ("--arm", "nothing"): ("arm must be one of", "pretrained", "'nothing'"),
    ("--steps", "-1"): ("steps cannot be -1",),
    ("--precision", "fp16"): ("'fp16' needs a GPU",),
    ("--scale", "full"): ("--pairs",),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_setting_gives_one_clear_line(tmp_path, capsys, wrong):
    assert main([*TINY, *wrong, "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("alignkit train: ") and err.count("\n") == 1
    assert all(word in err for word in WRONG[wrong])


def test_an_arm_that_is_not_trained_is_refused(tmp_path):
    said = "'prompts' of claim 'several-prompts' is not trained, .* weights of 'name'"
    with pytest.raises(ValueError, match=said):
        train("measuring", tmp_path, "tiny", claim="several-prompts", arm="prompts")


def test_the_folder_of_another_run_is_refused(tmp_path, capsys):
    assert main([*TINY, "--steps", "10", "--out", str(tmp_path)]) == 0
    before = (tmp_path / "train.json").read_bytes()
    assert main([*TINY, "--steps", "20", "--out", str(tmp_path)]) == 1
    assert "holds another run (it differs in budget)" in capsys.readouterr().err
    assert (tmp_path / "train.json").read_bytes() == before


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bits(tmp_path):
    command = [*TINY, "--steps", "200", "--save-every", "20", "--out"]
    folder = tmp_path / "killed"
    run = python("-m", "alignkit", *command, folder, stdout=subprocess.DEVNULL,
                 stderr=subprocess.DEVNULL)
    until = time.monotonic() + 100
    while not list(folder.glob("checkpoints/*.json")) and time.monotonic() < until:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert [p.name for p in folder.iterdir()] == ["checkpoints"]
    assert 0 < checkpoint.newest(folder / "checkpoints")[1]["step"] < 200
    for out in (folder, tmp_path / "whole"):
        assert main([*command, str(out)]) == 0
    killed, whole = (tmp_path / name for name in ("killed", "whole"))
    assert_same(load_file(killed / "method.safetensors"),
                load_file(whole / "method.safetensors"))
    assert (json.loads((killed / "train.json").read_text())["figures"]
            == json.loads((whole / "train.json").read_text())["figures"])


# Several processes --------------------------------------------------------------------
@pytest.mark.slow
def test_notebook_launcher_trains_in_two_processes(tmp_path):
    """The documented call; DDP ends where one process does, and one process speaks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = finished("-c", "from accelerate import notebook_launcher\n"
                    "from alignkit.claims.train import train\n"
                    f"notebook_launcher(train, ('shared-space', {str(tmp_path / 'two')!r}, "
                    f"'tiny'), num_processes=2, use_port='{port}')")
    assert said.count("written to") == said.count("estimate:") == 1
    report = json.loads((tmp_path / "two" / "train.json").read_text())
    assert report["run"] == "DDP, 2 processes"
    alone = train("shared-space", tmp_path / "one", "tiny")
    assert report["figures"] == pytest.approx(alone["figures"], abs=0.05)
    two, one = (load_file(tmp_path / n / "method.safetensors") for n in ("two", "one"))
    for name in one:
        assert torch.allclose(two[name], one[name], atol=1e-4), name


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """(folder, what the two processes of `training_runs.several` left), once."""
    folder = tmp_path_factory.mktemp("several")
    finished("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             training_runs.__file__, "several", folder)
    return folder, [torch.load(folder / f"end-{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DDP", "chunk", "bf16", "FSDP2", "FSDP2 workers",
                                  "FSDP2 last", "FSDP2 bf16"])
def test_two_processes_end_where_one_does(several, kind):
    select_by = None if kind.endswith("last") else "figure"
    method, history = train_deep(budget=replace(DEEP, select_by=select_by))
    first, second = (end["ends"][kind] for end in several[1])
    assert first["sharded"] == kind.startswith("FSDP2")
    assert_same(first["weights"], second["weights"])
    within = 5e-3 if "bf16" in kind else 1e-5
    assert first["loss"] == pytest.approx(history.curve(), rel=within)
    assert (first["loss"] == pytest.approx(history.curve(), rel=1e-5)) == (within < 1e-4)
    for name, weight in method.state_dict().items():
        assert torch.allclose(first["weights"][name], weight, atol=within), name


@pytest.mark.slow
def test_a_run_goes_on_in_shards_in_copies_and_alone(several):
    folder = several[0] / "relay"
    tensors, facts = checkpoint.newest(folder)
    assert (facts["stage"], facts["step"]) == (1, 9)
    whole, history = train_deep()
    for name, weight in whole.state_dict().items():  # of the full shape, in two processes
        assert tensors[f"model.{name}"].shape == weight.shape
    method, relay = train_deep(folder)
    assert relay.curve() == pytest.approx(history.curve(), rel=1e-5)
    for name, weight in whole.state_dict().items():
        assert torch.allclose(method.state_dict()[name], weight, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DDP", "chunk", "FSDP2"])
def test_a_loss_that_is_not_finite_in_one_process_stops_both(several, kind):
    folder, ends = several
    said = ends[0]["said"][kind]
    assert said == ends[1]["said"][kind]  # both processes stopped, and say the same
    seen = [pairs().ids[i] for i in batch_rows(50, 16, 0, 0, 3)][1::2]
    assert "stage 'text' step 3, process 1: " in said and "'bad_loss': nan" in said
    assert str(seen) in said and "process 0" not in said
    assert checkpoint.newest(folder / f"broken {kind}")[1]["step"] == 3


@pytest.mark.slow
def test_what_does_not_go_with_shards_is_refused(several):
    for end in several[1]:
        assert "chunk does not go with FSDP2" in end["said"]["FSDP2 chunk"]
        assert "add --fsdp_version 2" in end["said"]["FSDP1"]
        assert "after_step changes weights" in end["said"]["writes"]
        assert "a batch of 1 rows is too small for 2 processes" in end["said"]["one row"]


# The estimate -------------------------------------------------------------------------
def test_the_estimate_of_cached_gradients_is_smaller():
    rows = pairs(100)
    method = DualEncoder(Settings(width=256, head="mlp"), rows)
    whole, chunked = (estimate(method, rows, Budget(steps=3, batch_size=100, chunk=chunk))
                      for chunk in (0, 10))
    assert 0 < chunked.saved < 0.9 * whole.saved and chunked.seconds > 0
    assert (chunked.weights, chunked.optimizer) == (whole.weights, whole.optimizer)
    assert all(p.grad is None for p in method.parameters())


def test_logits_whole_and_in_tiles():
    assert logits_memory(4096) == (64 * 2**20, 4 * TILE**2)
    assert logits_memory(100) == (40_000, 40_000)
