"""A step of `fit` on two small heads, beside a loop written out by hand."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.bench.contest import DEVICE, Contest, seeded
from alignkit.data import Pairs
from alignkit.parts import DualEncoder, Settings
from alignkit.training import Budget, batch_rows, fit
from alignkit.training.budget import rate


def features() -> dict[str, Tensor]:
    return {"image_features": seeded(2000, 1280).cpu(), "text_features": seeded(2000, 384).cpu()}


def ours(width: int, batch: int) -> Callable:
    """`fit` with its checks, its history and its exact resume."""
    def prepare(steps: int) -> Callable:
        torch.manual_seed(0)
        pairs = Pairs.from_features(features())
        method = DualEncoder(Settings(width=width), pairs)

        def work() -> nn.Module:
            fit(method, pairs, Budget(steps=steps, batch_size=batch))
            return method.heads
        return work
    return prepare


def by_hand(width: int, batch: int, whole: bool) -> Callable:
    """The same heads on the same rows; if `whole` with the same rates and clipping, so
    that the weights are those of `fit`, else at one rate."""
    def prepare(steps: int) -> Callable:
        torch.manual_seed(0)
        columns, budget = features().values(), Budget()
        heads = nn.ModuleList(nn.Linear(x.shape[1], width) for x in columns).to(DEVICE)
        optimizer = torch.optim.AdamW(heads.parameters(), lr=budget.lr, betas=budget.betas,
                                      weight_decay=budget.weight_decay)
        right, seen = torch.arange(batch, device=DEVICE), []

        def work() -> nn.Module:
            for step in range(steps):
                rows = batch_rows(2000, batch, 0, 0, step)
                a, b = (F.normalize(head(x[rows].to(DEVICE)))
                        for head, x in zip(heads, columns, strict=True))
                logits = 20 * a @ b.T
                loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
                optimizer.zero_grad()
                loss.backward()
                if whole:
                    optimizer.param_groups[0]["lr"] = rate(budget, step, steps) * budget.lr
                    nn.utils.clip_grad_norm_(heads.parameters(), budget.clip)
                optimizer.step()
                seen.append(loss.item())
            return heads
        return work
    return prepare


def contest(width: int, batch: int, steps: int) -> Contest:
    """Ours, the same by hand, and the least that trains."""
    return Contest(
        f"{{n}} steps of two linear heads to width {width}, batch {batch}, one thread",
        steps, 20, {"alignkit fit": ours(width, batch),
                    "a loop by hand, same training": by_hand(width, batch, True),
                    "a loop by hand, no clipping, one rate": by_hand(width, batch, False)},
        threads=1)


LOOP = contest(64, 128, 1000)
WIDE_LOOP = contest(128, 512, 300)
