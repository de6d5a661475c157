"""A method whose figure is arranged, and claims on it."""

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from alignkit.claims import Arm, Claim, Condition, Null, run
from alignkit.data import Pairs
from alignkit.parts import Method
from alignkit.training import Budget

BUDGET = Budget(steps=2, batch_size=4, lr=1e-3)


@dataclass(frozen=True)
class FakeSettings:
    effect: float = 0.0
    width: int = 2  # of `own`: arms that differ here have tensors of different shapes


class Fake(Method):
    """One weight; what the figure will be is read from the data when it is built."""

    starts: list = []  # (effect, first weights) of every run of fit

    def build(self, settings, pairs):
        # `own` draws first: with another width, `shared` would not start equal by itself.
        self.own, self.shared = nn.Linear(1, settings.width), nn.Linear(1, 3)
        signal = float(pairs["x"].abs().max() > 0)  # 0 where the null has removed it
        self.register_buffer("effect", torch.tensor(settings.effect * signal))

    def encode(self, batch):
        return {"x": self.shared(batch["x"]), "own": self.own(batch["x"])}

    def losses(self, outputs, batch, progress):
        if progress == 0:
            weights = {k: v.clone() for k, v in self.state_dict().items()}
            Fake.starts.append((self.settings.effect, weights))
        return {"a_loss": sum(z.square().mean() for z in outputs.values())}


def seed_of_split(splits) -> int:
    return int(splits.test["x"][0, 0]) - 1


def data(seed: int):
    return Pairs.from_features({"x": torch.full((20, 1), float(seed + 1))}).split(seed)


def arm(effect: float, width: int = 2, start=None) -> Arm:
    return Arm(data, lambda splits, **more: Fake(
        FakeSettings(**{"effect": effect, "width": width} | more), splits.train), start)


def wobble(seed: int, name: str) -> float:
    """Noise of an arm, known in advance."""
    return math.sin(7.3 * seed + sum(map(ord, name)))


def measured(noise: float):
    def measure(arms):
        return {name: 0.5 + float(a.method.effect)
                + noise * wobble(seed_of_split(a.splits), name) for name, a in arms.items()}
    return measure


def no_signal(splits, seed):
    empty = splits.train.with_columns(x=torch.zeros(len(splits.train), 1))
    return splits._replace(train=empty)


def claim(effect: float = 0.1, noise: float = 0.01, null_margin: float = 0.05, **change):
    settings = dict(
        name="fake", sentence="More is more.", arms={"less": arm(0.0), "more": arm(effect)},
        baseline="less", method="more", differs="method", measure=measured(noise),
        figure="points", budget=BUDGET, choose_by="score",
        margin=0.001, margin_why="a test",
        validate=lambda method, splits: {"score": 0.0},
        null=Null("no signal", no_signal, 0.0, null_margin),
        condition=Condition("rows", lambda a: len(a.splits.train), 10, 20))
    return Claim(**{**settings, **change})


def two_steps(claim):
    """The claim with two steps of training, whatever the arm's budget."""
    budgets = {arm: {k: v for k, v in change.items() if k != "steps"}
               for arm, change in claim.budgets.items()}
    return replace(claim, budget=replace(claim.budget, steps=2), budgets=budgets)


def result_of(tmp_path, *claims, seeds=range(5), **change):
    claims = claims or (claim(**change),)
    found = run("fake", claims, data(0).train, "tiny", seeds=seeds, work=tmp_path,
                say=lambda _: None)
    return found if len(claims) > 1 else found[0]
