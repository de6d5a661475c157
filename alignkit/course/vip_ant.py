"""Exercises of the notebook on audio and text without parallel data: the rank of the best of
several captions, a colleague's places, and which runs are zero-shot."""

import torch
from torch.nn.functional import interpolate

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: several captions a sound --------------------------------------------
def _own(scores: torch.Tensor, each: int) -> torch.Tensor:
    """Bool [n, n · each]: which captions are a sound's own."""
    place = torch.arange(scores.shape[1]) // each
    return torch.arange(len(scores))[:, None] == place


def _ranks(scores: torch.Tensor, each: int, how=torch.amax, tie=torch.ge) -> torch.Tensor:
    own = _own(scores, each)
    best = how(scores[own].view(len(scores), each), 1)
    return 1 + (tie(scores, best[:, None]) & ~own).sum(1)


def _by_sorting(scores: torch.Tensor, each: int) -> torch.Tensor:
    order = scores.argsort(dim=1, descending=True)
    own = order // each == torch.arange(len(scores))[:, None]
    return 1 + own.int().argmax(1)


def _sounds(scores: torch.Tensor, each: int) -> torch.Tensor:
    """As `_ranks`, but a sound whose captions stand above counts once."""
    best = scores.view(len(scores), -1, each).amax(2)
    others = ~torch.eye(len(best), dtype=torch.bool)
    return 1 + ((best >= best.diagonal()[:, None]) & others).sum(1)


def _scores(generator: torch.Generator) -> tuple[torch.Tensor, int]:
    n, each = random_size(generator, 4, 7), random_size(generator, 2, 4)
    return torch.randint(0, 8, (n, n * each), generator=generator) / 8, each


ranks = Exercise(
    name="ranks",
    task="rank of each sound's best own caption, from 1; ties count against it",
    reference=_ranks,
    cases=_scores,
    mistakes={
        "ties lost": Mistake(
            lambda scores, each: _ranks(scores, each, tie=torch.gt),
            "count only captions that score more. One with the same score counts, too: >=.",
        ),
        "the mean": Mistake(
            lambda scores, each: _ranks(scores, each, how=torch.mean),
            "rank the mean of a sound's own captions. The best one of them counts.",
        ),
        "the worst": Mistake(
            lambda scores, each: _ranks(scores, each, how=torch.amin),
            "rank the worst own caption. The best one of them counts.",
        ),
        "own counted": Mistake(
            lambda scores, each: _ranks(scores, each) + (
                scores[_own(scores, each)].view(len(scores), each)
                >= scores[_own(scores, each)].view(len(scores), each).amax(1, keepdim=True)
            ).sum(1),
            "count the sound's own captions among those that stand above. Only others' do.",
        ),
        "from zero": Mistake(
            lambda scores, each: _ranks(scores, each) - 1,
            "begin to count at 0. The first place is rank 1.",
        ),
        "columns in turn": Mistake(
            lambda scores, each: 1 + ((scores >= scores[:, :len(scores)].diagonal()[:, None])
                                      & ~_own(scores, each)).sum(1),
            "take column i as sound i's caption. Its captions are the columns from i · each "
            "to i · each + each − 1.",
        ),
        "columns by remainder": Mistake(
            lambda scores, each: _ranks(scores.view(len(scores), each, -1).mT.flatten(1), each),
            "take every n-th column as a sound's captions (column modulo n). They stand side by "
            "side: column // each.",
        ),
        "sorting": Mistake(
            _by_sorting,
            "sort and look up the place, which puts captions of equal score in any order. Count "
            "the others' captions with >=, so that a tie counts against the sound.",
        ),
        "own ties": Mistake(
            lambda scores, each: _ranks(scores, each, tie=torch.ge) + (
                (scores >= torch.where(_own(scores, each), scores, -1.0).amax(1, keepdim=True))
                & _own(scores, each)).sum(1) - 1,
            "count all captions that score at least as much as the best own one, and so two of "
            "its own where they tie. Leave its own out, and add 1.",
        ),
        "sounds counted": Mistake(
            _sounds,
            "count the other sounds of which one caption scores as much. Every such caption "
            "counts.",
        ),
    },
)


# Exercise 2, transfer: a colleague's places ------------------------------------------------
def _stretched(places, h, w, first: int = 1, turned: bool = True, back: bool | None = None,
               corners: bool = False) -> torch.Tensor:
    """turned: numbers before places on the way in; back: and again on the way out."""
    side = round((len(places) - 1) ** 0.5)
    square = places[first:first + side * side]
    grid = (square.T if turned else square).reshape(1, -1, side, side)
    new = interpolate(grid, (h, w), mode="bilinear", align_corners=corners)[0]
    back = turned if back is None else back
    rows = new.flatten(1).T if back else new.reshape(-1, places.shape[1])
    return torch.cat([places[:1], rows])


def _places(generator: torch.Generator) -> tuple[torch.Tensor, int, int]:
    side, d = random_size(generator, 2, 4), random_size(generator, 2, 5)
    return (random_rows(generator, 1 + side**2, d), random_size(generator, 2, 5),
            random_size(generator, 5, 8))


mended = Exercise(
    name="mended",
    task="places [1 + s·s, d] -> [1 + h·w, d], the first kept, the square stretched",
    reference=_stretched,
    cases=_places,
    mistakes={
        "as it was": Mistake(
            lambda places, h, w: _stretched(places, h, w, 0, False),
            "have changed nothing yet: look at which rows are the square, and at the order of "
            "their numbers when they are made a picture.",
        ),
        "class token in the square": Mistake(
            lambda places, h, w: _stretched(places, h, w, 0),
            "stretch the class token's place with the others: the square begins one row later.",
        ),
        "numbers mixed": Mistake(
            lambda places, h, w: _stretched(places, h, w, 1, False),
            "fill the picture row by row of `places`, which mixes places and dimensions: turn "
            "it over (.T) first, so that each of the d numbers has a picture of its own.",
        ),
        "mixed on the way out": Mistake(
            lambda places, h, w: _stretched(places, h, w, back=False),
            "turn the numbers over on the way in alone. What comes out is [d, h, w]: it has to "
            "be turned back, `.flatten(1).T`.",
        ),
        "mixed on the way in": Mistake(
            lambda places, h, w: _stretched(places, h, w, turned=False, back=True),
            "turn the numbers over on the way out alone. What goes in has to be [1, d, s, s]: "
            "`.T` before reshape.",
        ),
        "token and way out": Mistake(
            lambda places, h, w: _stretched(places, h, w, 0, back=False),
            "stretch the class token's place with the others, and do not turn what comes out, "
            "[d, h, w], back to [h · w, d].",
        ),
        "corners": Mistake(
            lambda places, h, w: _stretched(places, h, w, corners=True),
            "have changed align_corners, which was no mistake: False, as it stood.",
        ),
        "sides swapped": Mistake(
            lambda places, h, w: _stretched(places, w, h),
            "swap h and w: the new grid has h rows and w columns.",
        ),
        "class token lost": Mistake(
            lambda places, h, w: _stretched(places, h, w)[1:],
            "leave out the class token's place: it stays, as the first row.",
        ),
    },
)


# Exercise 3, judge: which runs are zero-shot -------------------------------------------------
def _kinds(pairs, chosen, voices, captions, leaks: bool = True, tuning: bool = True,
           ) -> torch.Tensor:
    """3 zero-shot, 2 chosen by pairs, 1 supervised, 0 a broken split."""
    found = torch.full(pairs.shape, 3)
    if tuning:
        found[chosen] = 2
    found[pairs] = 1
    if leaks:
        found[voices | captions] = 0
    return found


def _runs(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    n = random_size(generator, 8, 14)
    return tuple(torch.rand(n, generator=generator) < share for share in (.4, .5, .2, .2))


def _leak_last(pairs, chosen, voices, captions):
    found = torch.where(voices | captions, 0, 3)
    found[chosen & (found == 3)] = 2
    found[pairs] = 1
    return found


judged = Exercise(
    name="judged",
    task="3 zero-shot, 2 chosen by pairs, 1 supervised, 0 a split that is broken",
    reference=_kinds,
    cases=_runs,
    mistakes={
        "leaks": Mistake(
            lambda *runs: _kinds(*runs, leaks=False),
            "let a voice or a caption stand on both sides: such a run is broken, 0, whatever "
            "else is true of it.",
        ),
        "tuning": Mistake(
            lambda *runs: _kinds(*runs, tuning=False),
            "call a run zero-shot whose rate or step was chosen by pairs of sound and text: "
            "that is 2.",
        ),
        "chosen is supervised": Mistake(
            lambda pairs, chosen, voices, captions: _kinds(
                pairs | chosen, chosen, voices, captions),
            "call a run supervised whose rate or step alone was chosen by pairs. That is 2.",
        ),
        "voices forgotten": Mistake(
            lambda pairs, chosen, voices, captions: _kinds(
                pairs, chosen, captions, captions),
            "ask for shared captions alone. A shared voice breaks a split, too.",
        ),
        "both needed": Mistake(
            lambda pairs, chosen, voices, captions: torch.where(
                voices & captions, 0, _kinds(pairs, chosen, voices, captions, leaks=False)),
            "call a split broken only where voice and caption are both shared. One is enough.",
        ),
        "pairs first": Mistake(
            _leak_last,
            "ask for pairs before you ask for the split. A broken split is 0 even with pairs.",
        ),
        "chosen first": Mistake(
            lambda pairs, chosen, voices, captions: torch.where(
                voices | captions, 0, torch.where(chosen, 2, torch.where(pairs, 1, 3))),
            "call a run that trains on pairs 'chosen by pairs'. It is supervised: 1.",
        ),
    },
)
