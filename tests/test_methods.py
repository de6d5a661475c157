"""What every method must do, on random features, through the arms of its claims.

Parametrised over the claims files, so a new paper is under these tests when its files are
there. The traits that a method declares are the only exceptions.
"""

import inspect
import pkgutil
import re
import warnings
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, lru_cache
from importlib import import_module

import pytest
import torch
from by_paper import DAY
from torch import nn
from torch.overrides import TorchFunctionMode
from toys import random_pairs

import alignkit.methods
from alignkit.claims import paper, slugs
from alignkit.claims.runs import TUNING_SEEDS
from alignkit.data import Lazy, Pairs, Tokens
from alignkit.data.columns import length, take
from alignkit.parts import Method
from alignkit.training import NonFiniteLoss, batch_rows, checkpoint, fit, memory_of, seed_all

pytestmark = pytest.mark.usefixtures("first_step", "kornia")
TRAITS = {"untrained", "ordered", "no pairs", "stopped"}
CARD = ("Paper", "Claim", "Equations", "Frozen", "Exact property", "Deviations",
        "Reconstructed")
MODULES = [m.name for m in pkgutil.iter_modules(alignkit.methods.__path__)]


@cache  # splits are kept with them: nobody writes into those
def claims_of(slug: str, scale: str) -> list:
    return paper(slug).claims(random_pairs(slug), scale)


@dataclass(frozen=True)
class Case:
    """An arm of a claim with its budget; builds are equal for equal seeds."""

    slug: str
    arm: str
    scale: str = "tiny"

    def build(self, seed: int = 0, claims: list | None = None):
        """(method, splits, budget) of a few short steps."""
        claims = claims or claims_of(self.slug, self.scale)
        claim = next(c for c in claims if self.arm in c.arms)
        splits = claim.arms[self.arm].data(TUNING_SEEDS[0])
        seed_all(seed)
        method = claim.arms[self.arm].build(splits)
        budget = replace(claim.budget, steps=6, batch_size=16, validate_every=0,
                         select_by=None)
        return method, splits, budget


def _arms() -> list[Case]:
    arms = {(slug, arm): None for slug in slugs()
            for claim in claims_of(slug, "tiny") for arm in claim.arms}
    return [Case(*names) for names in arms]


def _methods(arms: list[Case]) -> dict[tuple, Case]:
    """An arm for each different method of a paper, (slug, class, settings) -> case: those
    that differ in their data alone or in how they are used are one method."""
    found = {}
    for case in arms:
        method = case.build()[0]
        found.setdefault((case.slug, type(method), repr(method.settings)), case)
    return found


def _in_turn(methods: dict[tuple, Case], day: int = DAY, every: int = 3) -> list[Case]:
    """One of each class, and of its other settings one in three, others each day: what
    resumes, learns and stays finite does so by its class, nearly always."""
    of_class = {}
    for (slug, kind, _), case in methods.items():
        of_class.setdefault((slug, kind), []).append(case)
    return [case for cases in of_class.values()
            for k, case in enumerate(cases) if k == 0 or (k + day) % every == 0]


ARMS = _arms()
METHODS = _methods(ARMS)
CASES = list(METHODS.values())


def through(cases: list[Case], quick: list[Case]):
    """A test of each case; those that are not `quick` wait for a run of all tests."""
    return pytest.mark.parametrize("case", [
        pytest.param(case, id=f"{case.slug}:{case.arm}",
                     marks=() if case in quick else pytest.mark.slow) for case in cases])


FIRST = list({case.slug: case for case in reversed(CASES)}.values())  # one a paper
every_method = through(CASES, CASES)
every_method_trained = through(_in_turn(METHODS), FIRST)
every_method_slowly = through(_in_turn(METHODS), [])
# At full scale settings may differ where they do not at this one.
every_arm = through(ARMS, FIRST)


def moved(value, rows: torch.Tensor, n: int):
    """A batch or an output with its rows in another order."""
    if isinstance(value, dict):
        return {k: moved(v, rows, n) for k, v in value.items()}
    whole = isinstance(value, Tokens | Lazy) or (
        isinstance(value, torch.Tensor | list) and length(value) == n)
    return take(value, rows) if whole else value


def as_double(value):
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Tokens):
        return Tokens(*map(as_double, value))
    return {k: as_double(v) for k, v in value.items()} if isinstance(value, dict) else value


def batch_of(method: Method, rows: Pairs) -> dict:
    return as_double(method.collate(rows, seed_all(0)))


def loss_of(method: Method, batch: dict) -> torch.Tensor:
    seed_all(1)
    return sum(method(batch, 0.9).values())


def prepared(case: Case):
    """(method in float64 without dropout, batch of 12 training rows)."""
    method, splits, _ = case.build()
    method = method.double().eval()
    rows = splits.train.select(torch.arange(12))
    for stage in method.stages():
        if stage.solve:
            stage.solve(stage.view(splits.train))
    return method, batch_of(method, rows)


# The files ----------------------------------------------------------------------------
def test_every_method_has_claims_and_every_claim_an_arm():
    assert MODULES and not {m.replace("_", "-") for m in MODULES} - set(slugs())
    assert {case.slug for case in CASES} == set(slugs())


def test_in_three_days_every_method_is_trained():
    days = [_in_turn(METHODS, day) for day in (7, 8, 9)]
    assert {*days[0], *days[1], *days[2]} == {*CASES} and {*FIRST} <= {*days[0]} & {*days[1]}
    assert all(len(day) < len(CASES) for day in days)


@pytest.mark.parametrize("name", MODULES)
def test_the_card_is_complete(name):
    text = import_module(f"alignkit.methods.{name}").__doc__ or ""
    missing = [head for head in CARD if not re.search(rf"^{head}\b.*\S", text, re.M)]
    assert not missing, (f"alignkit/methods/{name}.py: its docstring needs lines that start "
                         f"with {missing}, each with words behind it")


@pytest.mark.parametrize("name", MODULES)
def test_every_class_is_a_method_with_settings(name):
    module = import_module(f"alignkit.methods.{name}")
    own = [c for _, c in inspect.getmembers(module, inspect.isclass)
           if c.__module__ == module.__name__]
    networks = [c for c in own if issubclass(c, nn.Module) and not c.__name__.startswith("_")]
    assert any(issubclass(c, Method) for c in networks)
    for network in networks:
        assert issubclass(network, Method), f"{network.__name__} is no Method"
        assert network.traits <= TRAITS, network.traits - TRAITS
    settings = [c for c in own if c.__name__.endswith("Settings")]
    assert all(is_dataclass(c) and c.__dataclass_params__.frozen for c in settings)
    used = {type(case.build()[0].settings) for case in CASES
            if case.slug == name.replace("_", "-")}
    assert all(is_dataclass(c) and fields(c) for c in used)


# The arms -----------------------------------------------------------------------------
@every_method
def test_losses_are_finite_scalars_with_names(case):
    method, batch = prepared(case)
    if "untrained" in method.traits:
        return
    for progress in (0.0, 0.5, 1.0):
        losses = method(batch, progress)
        assert losses and all(name.endswith("_loss") for name in losses)
        assert all(x.dim() == 0 and torch.isfinite(x) for x in losses.values())


@every_method
def test_a_common_order_of_rows_does_not_matter(case):
    method, batch = prepared(case)
    if "untrained" in method.traits:
        return
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    change = loss_of(method, moved(batch, order, 12)) / loss_of(method, batch) - 1
    # A trait that is declared must be needed.
    assert (change.abs() > 1e-10) == ("ordered" in method.traits)


@every_method
def test_the_pairing_matters(case):
    """Unless the method says that it uses none: rows of the text stay, the others turn."""
    method, batch = prepared(case)
    if "untrained" in method.traits:
        return
    turned = {k: moved(v, torch.arange(12).roll(1), 12) if k.startswith("text") else v
              for k, v in batch.items()}
    change = loss_of(method, turned) / loss_of(method, batch) - 1
    assert (change.abs() < 1e-10) == ("no pairs" in method.traits)


@every_method
def test_gradient_agrees_with_finite_differences(case):
    """Unless the method says that part of it is stopped; its gradient is another then."""
    method, batch = prepared(case)
    if "untrained" in method.traits:
        return
    trained = [p for p in method.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    gradient = torch.autograd.grad(loss_of(method, batch), trained, allow_unused=True)
    drawn = torch.Generator().manual_seed(2)

    def at(step: float, direction) -> float:
        with torch.no_grad():
            for p, s, d in zip(trained, start, direction):
                p.copy_(s + step * d)
            return loss_of(method, batch).item()

    agree = []
    for _ in range(2):
        direction = [torch.randn(p.shape, generator=drawn, dtype=p.dtype) for p in trained]
        exact = sum(float((g * d).sum()) for g, d in zip(gradient, direction)
                    if g is not None)
        h = 1e-6  # small: a maximum has kinks, and a step must cross none
        slope = (8 * (at(h, direction) - at(-h, direction))
                 - at(2 * h, direction) + at(-2 * h, direction)) / (12 * h)
        agree.append(slope == pytest.approx(exact, rel=1e-6, abs=1e-8))
    assert not any(agree) if "stopped" in method.traits else all(agree)


@every_method
def test_weights_go_into_another_of_its_kind(case):
    (method, splits, _), (other, *_) = case.build(0), case.build(1)
    batch = method.collate(splits.train.select(torch.arange(12)), seed_all(0))
    changed = [k for k, v in method.state_dict().items()
               if not torch.equal(v, other.state_dict()[k])]
    if not changed:  # nothing is drawn: the start is fixed, as where a matrix begins as 1
        with torch.no_grad():
            for weight in method.parameters():
                weight += 0.1 * torch.randn(weight.shape)
    assert changed or [*method.parameters()] or "untrained" in method.traits
    other.load_state_dict(method.state_dict())
    for mine, its in zip(*(flat(m.eval().encode(batch)) for m in (method, other))):
        assert torch.equal(mine, its)


def flat(outputs) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for part in parts for tensor in flat(part)]


@every_method
def test_scores_are_of_every_query_with_every_row_of_the_gallery(case):
    method, batch = prepared(case)
    with torch.no_grad():
        first, second = list(method.encode(batch).values())[:2]
    few, order = torch.tensor([7, 0, 3]), torch.arange(12).roll(5)
    scores = method.score(first, second)
    assert scores.shape == (12, 12)
    asked = method.score(moved(first, few, 12), moved(second, order, 12))
    assert asked.shape == (3, 12)
    assert torch.allclose(asked, scores[few][:, order], rtol=0, atol=1e-9)


def kind_and_settings(arm, splits) -> tuple:
    """(class, settings) of an arm's method; on the meta device, where nothing is drawn,
    unless the arm chooses from the data: that needs numbers."""
    try:
        with warnings.catch_warnings(action="ignore"), torch.device("meta"), Undrawn():
            made = arm.build(splits)  # shipped weights that it loads warn
    except (RuntimeError, TypeError):
        made = arm.build(splits)
    return type(made), made.settings


class Undrawn(TorchFunctionMode):
    """No initial weight is drawn: that takes seconds where there are millions, and on the meta
    device half of the time. (While it builds, transformers has functions of its own in the
    place of torch's.)"""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        drawn = torch.Tensor.uniform_, torch.Tensor.normal_
        module = getattr(function, "__module__", "")
        if function in drawn or module in ("torch.nn.init", "transformers.initialization"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="session")
def transformers():
    """The towers of some papers at full scale; the first import takes a second."""
    from transformers import CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection


@lru_cache(maxsize=1)  # the arms of a paper come one after another: its rows once
def at_full_width(slug):
    return paper(slug).claims(random_pairs(slug, 100, widths=(1024, 1024)), "full")


@every_arm
@pytest.mark.usefixtures("transformers")
def test_it_is_built_on_the_meta_device_at_full_width(case):
    full = replace(case, arm=case.arm, scale="full")
    kinds = {arm.split("@")[0]: a for c in at_full_width(full.slug)
             for arm, a in c.arms.items()}
    arm = kinds[case.arm.split("@")[0]]
    splits = arm.data(TUNING_SEEDS[0])
    kind, settings = kind_and_settings(arm, splits)
    with torch.device("meta"), Undrawn():
        there = kind(settings, splits.train)
    assert all(v.is_meta for v in there.state_dict().values())
    weights, gradients, trainable = memory_of(there)
    if case in FIRST:  # once a paper: some have 140 million weights
        with Undrawn():
            assert (weights, gradients, trainable) == memory_of(arm.build(splits))
    if "untrained" not in there.traits:
        assert trainable >= 2 * 1024 * 128 and gradients == 12 * trainable


@every_method_trained
def test_a_step_in_bfloat16_is_finite(case):
    method, splits, budget = case.build()
    history = fit(method, splits.train, replace(budget, steps=3, precision="bf16"))
    assert all(torch.isfinite(v).all() for v in method.state_dict().values()
               if v.is_floating_point())
    assert bool(history.steps) != ("untrained" in method.traits)


@every_method_slowly
def test_an_interrupted_run_ends_with_the_same_bits(case, tmp_path):
    whole, splits, budget = case.build()
    budget = replace(budget, steps=4, save_every=2)
    if "untrained" in whole.traits:
        return
    fit(whole, splits.train, budget, seed=3)
    broken, *_ = case.build()
    steps, finish = iter(range(2)), broken.after_step

    def after_step():
        finish()
        if next(steps, None) is None:
            raise KeyboardInterrupt

    broken.after_step = after_step
    with pytest.raises(KeyboardInterrupt):
        fit(broken, splits.train, budget, seed=3, folder=tmp_path)
    assert checkpoint.newest(tmp_path)[1]["step"] == 2
    again, *_ = case.build()
    # Once a paper its collate now runs in a worker, on a copy of the method without weights:
    # to start one takes as long as the test.
    history = fit(again, splits.train, budget, seed=3, folder=tmp_path,
                  workers=int(case in FIRST))
    assert len(history.steps) >= 3  # some stages have steps of their own
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def flat_of(value) -> list[torch.Tensor]:
    """The tensors of a batch's entry."""
    return flat(value) if isinstance(value, (torch.Tensor, dict, Tokens)) else []


@every_method_trained
def test_it_learns_and_says_what_broke(case):
    """More steps lower the loss; features that are not finite are named by their rows."""
    anew = claims_of.__wrapped__(case.slug, case.scale)  # rows to write into
    method, splits, budget = case.build(claims=anew)
    if "untrained" in method.traits:
        return
    for stage in method.stages():
        if stage.solve:
            stage.solve(stage.view(splits.train))
    batch = method.collate(splits.train, seed_all(0))
    with torch.no_grad():
        before = loss_of(method.eval(), batch)
    fit(method, splits.train, replace(budget, steps=12))
    with torch.no_grad():
        assert loss_of(method, batch) < before
    if not any(x.is_floating_point() for v in batch.values() for x in flat_of(v)):
        return  # whole numbers are always finite
    columns = splits.train.columns
    for name in columns:
        if torch.is_tensor(columns[name]):
            columns[name].fill_(torch.nan)
        elif isinstance(columns[name], Tokens):
            if columns[name].values.is_floating_point():
                columns[name].values.fill_(torch.nan)
    index, stage = next((i, s) for i, s in enumerate(method.stages()) if not s.solve)
    rows = stage.view(splits.train)
    named = rows.ids[int(batch_rows(len(rows), budget.batch_size, 0, index, 0)[0])]
    with pytest.raises(NonFiniteLoss, match=rf"'{named}'"):
        fit(method, splits.train, budget)
