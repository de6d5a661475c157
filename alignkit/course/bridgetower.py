"""Exercises of the notebook on BridgeTower: a bridge with a gate, two streams that must look at
each other as they came in, and what explains a gain."""

import torch
from torch.nn.functional import layer_norm

from .exercises import Exercise, Mistake, random_rows, random_size


def _norm(x: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:])


# Exercise 1, build: a bridge with a gate ------------------------------------------------
def _mixed(tap, before, W):
    return torch.cat([tap, before], 1) @ W


def _gated(tap, before, W):
    """[t, d], [t, d], [2 d, d] -> [t, d]: LN(a · tap + (1 − a) · before)."""
    a = _mixed(tap, before, W).sigmoid()
    return _norm(a * tap + (1 - a) * before)


def _turned(tap, before, W):
    a = _mixed(tap, before, W).sigmoid()
    return _norm((1 - a) * tap + a * before)


def _one_side(tap, before, W):
    return _norm(_mixed(tap, before, W).sigmoid() * tap + before)


def _shares(tap, before, W):
    a = _mixed(tap, before, W).softmax(1)
    return _norm(a * tap + (1 - a) * before)


def _no_norm(tap, before, W):
    a = _mixed(tap, before, W).sigmoid()
    return a * tap + (1 - a) * before


def _norm_first(tap, before, W):
    a = _mixed(tap, before, W).sigmoid()
    return a * _norm(tap) + (1 - a) * _norm(before)


def _before_first(tap, before, W):
    a = (torch.cat([before, tap], 1) @ W).sigmoid()
    return _norm(a * tap + (1 - a) * before)


def _one_a_token(tap, before, W):
    a = _mixed(tap, before, W).sigmoid().mean(1, keepdim=True)
    return _norm(a * tap + (1 - a) * before)


def _streams(g):
    t, d = random_size(g, 2, 6), random_size(g, 3, 7)
    return random_rows(g, t, d), 3 * random_rows(g, t, d), random_rows(g, 2 * d, d)


gated = Exercise(
    name="gated",
    task="LN(a · tap + (1 − a) · before) with the gate a = sigmoid([tap; before] W)",
    reference=_gated,
    cases=_streams,
    mistakes={
        "turned round": Mistake(
            _turned, "give the gate to the wrong side: a is the share of the tap, 1 − a of what "
            "the layer before gave."),
        "one side": Mistake(
            _one_side, "weigh the tap alone. What the gate takes from one side it gives to the "
            "other: 1 − a of `before`."),
        "shares": Mistake(
            _shares, "take a softmax, so that the numbers of one token share one whole. A gate "
            "is a number between 0 and 1 for each number of each token: sigmoid."),
        "no norm": Mistake(
            _no_norm, "leave out the LayerNorm, which stands around the whole sum."),
        "norm first": Mistake(
            _norm_first, "take the LayerNorm of both sides before the sum. It stands around "
            "the sum: LN(…)."),
        "before first": Mistake(
            _before_first, "put `before` in front of the tap where W reads them: [tap; before]."),
        "one a token": Mistake(
            _one_a_token, "make one gate of a whole token. W has d columns: a number for each of "
            "the d numbers of a token."),
    },
)


# Exercise 2, transfer: find the bug -----------------------------------------------------
def _look(x, y):
    return x + (x @ y.T).softmax(1) @ y


def _both(x, y):
    """[t, d], [r, d] -> [t + r, d]: both, each after a look at the other as it came in."""
    return torch.cat([_look(x, y), _look(y, x)])


def _one_after_the_other(x, y):
    x = _look(x, y)
    return torch.cat([x, _look(y, x)])


def _the_other_first(x, y):
    y = _look(y, x)
    return torch.cat([_look(x, y), y])


def _nothing_kept(x, y):
    return torch.cat([(x @ y.T).softmax(1) @ y, (y @ x.T).softmax(1) @ x])


def _wrong_axis(x, y):
    return torch.cat([x + (x @ y.T).softmax(0) @ y, y + (y @ x.T).softmax(0) @ x])


def _half_mended(x, y):
    new = _look(x, y)
    return torch.cat([new, y + (y @ x.T).softmax(1) @ new])


def _half_mended_keys(x, y):
    new = _look(x, y)
    return torch.cat([new, y + (y @ new.T).softmax(1) @ x])


def _one_softmax(x, y):
    shares = (x @ y.T).softmax(1)
    return torch.cat([x + shares @ y, y + shares.T @ x])


def _regions_first(x, y):
    return torch.cat([_look(y, x), _look(x, y)])


def _both_sides(g):
    d = random_size(g, 3, 6)
    return random_rows(g, random_size(g, 2, 5), d), random_rows(g, random_size(g, 5, 8), d)


mended = Exercise(
    name="mended",
    task="each side plus its look at the other as it came in, words first [t + r, d]",
    reference=_both,
    cases=_both_sides,
    mistakes={
        "one after the other": Mistake(
            _one_after_the_other, "let the regions look at words that have already looked at "
            "them. Keep what came in, and let both look at that."),
        "the other first": Mistake(
            _the_other_first, "let the words look at regions that have already looked at them: "
            "the same bug, the other way round. Both look at what came in."),
        "nothing kept": Mistake(
            _nothing_kept, "drop what was there: x plus its look at y."),
        "wrong axis": Mistake(
            _wrong_axis, "take the softmax over those who ask. The shares of one token that "
            "looks sum to 1: over the other side, dim=1."),
        "half mended": Mistake(
            _half_mended, "compare the regions with the words as they came in, but hand over "
            "words that have looked already. x stands twice in that line."),
        "half mended keys": Mistake(
            _half_mended_keys, "hand over the words as they came in, but compare the regions "
            "with words that have looked already. x stands twice in that line."),
        "one softmax": Mistake(
            _one_softmax, "turn the words' shares round for the regions. A region's own shares "
            "sum to 1 over the words: a softmax of its own, (y @ x.T).softmax(1)."),
        "regions first": Mistake(
            _regions_first, "give the regions first. Words come first in the one tensor."),
    },
)


# Exercise 3, judge: what explains a gain ------------------------------------------------
def _explained(last, copies, lower, bridges, margin):
    """[n] each -> −1: no gain; 0: as much with copies; 1: as much with one lower layer; 2: it
    takes bridges."""
    found = torch.full_like(last, 2.0)
    found[bridges - lower <= margin] = 1
    found[bridges - copies <= margin] = 0
    found[bridges - last <= margin] = -1
    return found


def _only_last(last, copies, lower, bridges, margin):
    return torch.where(bridges - last > margin, 2.0, -1.0)


def _against_last(last, copies, lower, bridges, margin):
    """Whether the controls gain, and not whether the bridges gain over them."""
    found = torch.full_like(last, 2.0)
    found[lower - last > margin] = 1
    found[copies - last > margin] = 0
    found[bridges - last <= margin] = -1
    return found


def _any_lead(last, copies, lower, bridges, margin):
    return _explained(last, copies, lower, bridges, 0.0)


def _never_none(last, copies, lower, bridges, margin):
    found = torch.full_like(last, 2.0)
    found[bridges - lower <= margin] = 1
    found[bridges - copies <= margin] = 0
    return found


def _lower_first(last, copies, lower, bridges, margin):
    found = torch.full_like(last, 2.0)
    found[bridges - copies <= margin] = 0
    found[bridges - lower <= margin] = 1
    found[bridges - last <= margin] = -1
    return found


def _tables(g):
    """Each outcome and each trap at least once, then some by chance."""
    known = torch.tensor([[0.40, 0.40, 0.40, 0.41], [0.40, 0.58, 0.45, 0.60],
                          [0.40, 0.42, 0.62, 0.61], [0.40, 0.42, 0.47, 0.60],
                          [0.40, 0.59, 0.62, 0.60], [0.50, 0.40, 0.40, 0.48],
                          [0.40, 0.42, 0.59, 0.61]])
    n = random_size(g, 4, 9)
    drawn = 0.3 + 0.3 * torch.rand(n, 4, generator=g)
    return *torch.cat([known, drawn]).T.clone().unbind(0), 0.03


explained = Exercise(
    name="explained",
    task="-1 no gain over last; 0 copies do it too; 1 one lower layer does it too; 2 bridges",
    reference=_explained,
    cases=_tables,
    mistakes={
        "last alone": Mistake(
            _only_last, "compare with the last layer alone. A gain over it has three possible "
            "reasons, and two of them need no bridges between different layers."),
        "against last": Mistake(
            _against_last, "ask whether a control gains over the last layer. It may gain a "
            "little and bridges far more: subtract the control from bridges."),
        "any lead": Mistake(
            _any_lead, "call every lead a gain. Count only what is above the margin."),
        "lower first": Mistake(
            _lower_first, "give 1 where copies do it, too. The simpler reason is asked first: "
            "more places to enter (0), then a better layer (1)."),
        "never none": Mistake(
            _never_none, "explain a gain where there is none. First ask whether bridges are "
            "ahead of the last layer by more than the margin: if not, -1."),
    },
)
