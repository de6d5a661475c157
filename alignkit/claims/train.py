"""Train one arm of a paper's claim, in one process or many, and measure it.

`alignkit train SLUG --out FOLDER` does it; on several GPUs or machines
`accelerate launch -m alignkit train SLUG --out FOLDER`, with `--use_fsdp
--fsdp_version 2` for gradients and averages in shards. From a notebook, before any other
use of a GPU or of `fit` in it:

    from accelerate import notebook_launcher
    from alignkit.claims.train import train

    notebook_launcher(train, ("filip", "out"), num_processes=2)
"""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from safetensors.torch import save_file

from alignkit.claims import measured, paper
from alignkit.claims.claim import Claim, Trained
from alignkit.claims.hashes import code_hash
from alignkit.claims.registered import unseen
from alignkit.claims.results import data_facts, peak_memory_mb, versions
from alignkit.claims.runs import Runs
from alignkit.data import Pairs
from alignkit.evaluation import evaluate_retrieval
from alignkit.training import Budget, History, distributed, estimate, fit, logits_memory


def train(slug: str, folder: Path | str, scale: str = "small", claim: str | None = None,
          arm: str | None = None, pairs: Path | str | None = None, seed: int = 0,
          changes: dict | None = None, workers: int | None = None) -> dict:
    """Train an arm, measure it on the test rows, and write `folder`.

    folder gets `method.safetensors`, `train.json` (what is returned) and `checkpoints`,
    from which the same call goes on; several machines must all see it. claim: the first
    if None. arm: the claim's method if None (its baseline where only that is trained).
    pairs: see `own_pairs`. changes: of the claim's budget, e.g. {"steps": 100}; at the
    scale of the published results the arm has the rate that was tuned for it, and is the
    same run as theirs. workers: see `fit`; None: on a GPU as many as the estimate says are
    of use, on a CPU none.

    Raises:
        ValueError: an unknown claim or arm, one that is not trained, or a setting or a
            folder that does not fit (see `fit`).
        NonFiniteLoss: see `fit`; the last good checkpoint stays.
    """
    folder, module = Path(folder), paper(slug)
    state = distributed.accelerator().state
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)  # if it cannot be, then better now
    own = own_pairs(Path(pairs), module.NEEDS) if pairs else None
    with state.main_process_first(), state.local_main_process_first():
        data = module.data(scale, own)  # the first of all and of each machine fills caches
    found = module.claims(data, scale)
    chosen = _named("claim", claim or found[0].name, {c.name: c for c in found})
    name = _arm(chosen, arm)
    runs = Runs(found, {a: change for result in measured(slug) if result.scale == scale
                        for a, change in result.settings["tuned"].items()})
    budget = replace(runs.budget(chosen, name), **changes or {})
    if not budget.save_every:
        budget = replace(budget, save_every=max(10, budget.steps // 20))
    method, splits = runs.build(chosen, name, seed, null=False)
    say = print if state.is_main_process else lambda *_: None
    say(data.describe())
    kind = "one process" if state.num_processes == 1 else (
        f"{'FSDP2' if distributed.wants_shards(state, budget) else 'DDP'}, "
        f"{state.num_processes} processes")
    say(f"{slug}: arm {name!r} of claim {chosen.name!r}, scale {scale}, seed {seed}; "
        f"{kind} on {state.device.type}")
    method.to(state.device)
    said, workers = _costs(method, splits.train, budget, state, workers)
    say(said)
    history = fit(method, splits.train, budget, seed, folder=folder / "checkpoints",
                  validate=lambda m: chosen.validate(m, splits), progress=True,
                  workers=workers)
    figures = _measure(chosen, name, Trained(method, splits, history))
    report = {
        "slug": slug, "claim": chosen.name, "arm": name, "scale": scale, "seed": seed,
        "figures": figures, "history": _summary(history), "budget": asdict(budget),
        "method": type(method).__name__, "settings": repr(method.settings),
        "data": data_facts(data),
        "rows": {part: len(rows) for part, rows in splits._asdict().items()},
        "run": kind, "device": str(state.device), "versions": versions(),
        "code": code_hash(slug), "peak_memory_mb": peak_memory_mb()}
    if state.is_main_process:
        _write(folder, method, report)
    say(unseen(slug, found, scale) or "\n".join(
        f"{key}  {value:.4g}" for key, value in figures.items()))
    say(f"written to {folder / 'method.safetensors'} and {folder / 'train.json'}")
    return report


def own_pairs(path: Path, needs: tuple[str, ...] | None) -> Pairs:
    """A user's pairs, from a CSV with columns image,caption, a folder of pictures and .txt
    files, or a folder of `Pairs.save` or of shards.

    Raises ValueError if the columns `needs` of a paper's claims are not there, or None.
    """
    if not needs:
        raise ValueError("--pairs: this paper's claims take no pairs of your own")
    if (path / "pairs.json").is_file() or (path / "shards.json").is_file():
        pairs = Pairs.load(path)
    else:
        pairs = Pairs.from_folder(path) if path.is_dir() else Pairs.from_table(path)
    if missing := [name for name in needs if name not in pairs.columns]:
        raise ValueError(f"--pairs {path}: no column {missing}; there are "
                         f"{sorted(pairs.columns)}")
    return pairs


def remade(slug: str, scale: str, path: Path | None = None) -> list[Claim]:
    """A paper's claims, made anew from the names of what they are on: for a process of
    its own."""
    module = paper(slug)
    own = own_pairs(path, module.NEEDS) if path else None
    return module.claims(module.data(scale, own), scale)


def _named(what: str, name: str, there: dict):
    if name not in there:
        raise ValueError(f"{what} must be one of {', '.join(there)}, got {name!r}")
    return there[name]


def _arm(claim: Claim, name: str | None) -> str:
    """The name of the arm to train."""
    if claim.differs != "inference":
        _named("arm", name or claim.method, claim.arms)
        return name or claim.method
    if name not in (None, claim.baseline):
        raise ValueError(f"arm {name!r} of claim {claim.name!r} is not trained, it takes "
                         f"the weights of {claim.baseline!r}")
    return claim.baseline


def _costs(method, rows: Pairs, budget: Budget, state, workers: int | None) -> tuple[str, int]:
    """(time and memory of a process before the run, its workers); every process must
    call."""
    size, processes = min(len(rows), budget.batch_size), state.num_processes
    cost = estimate(method, rows, replace(budget, batch_size=max(1, size // processes)))
    if workers is None:
        workers = 0 if state.device.type == "cpu" else cost.workers(
            int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    cost, fed = cost.fed_by(workers), f", batches from {workers} workers" if workers else ""
    whole, tile = (f"{n / 2**20:,.1f} MiB" for n in logits_memory(size))
    return (f"estimate: {cost} in float32{fed}\nlogits of {size:,} rows: {whole} whole, "
            f"{tile} tile by tile (parts.large_batch)", workers)


def _measure(claim: Claim, name: str, trained: Trained) -> dict[str, float]:
    """The claim's figure, or retrieval where the claim's needs other arms."""
    try:
        return {claim.figure: claim.measure({name: trained})[name]}
    except KeyError:
        return evaluate_retrieval(trained.method, trained.splits.test)["mean"]


def _summary(history: History) -> dict:
    loss = history.curve()
    return {"steps": len(loss), "first_loss": loss[0] if loss else None,
            "last_loss": loss[-1] if loss else None, "seconds": round(history.seconds, 1),
            "waited": round(history.waited, 1), "validation": history.validation}


def _write(folder: Path, method, report: dict) -> None:
    """Both files, each whole or not there."""
    part = folder / "method.part"
    save_file({k: v.detach().cpu().contiguous().clone()
               for k, v in method.state_dict().items()}, part)
    os.replace(part, folder / "method.safetensors")
    part.write_text(json.dumps(report, indent=1), "utf-8")
    os.replace(part, folder / "train.json")
