"""Writing texts from a model that scores the next word: greedy and beam search."""

from collections.abc import Callable

import torch
from torch import Tensor

from alignkit.parts.text import END, PAD, START

NextWord = Callable[[Tensor, Tensor], Tensor]  # ids [m, t], rows [m] -> logits [m, words]


@torch.no_grad()
def beam_search(next_word: NextWord, rows: int, longest: int, beams: int = 1,
                device: torch.device | str = "cpu") -> Tensor:
    """Ids [rows, t] of the best text found for each row: [CLS], words, [SEP], padding.

    `beams` unfinished texts a row are kept at each step, those whose words have the highest
    sum of log-probabilities, and one that ends is set aside. A row is done when `beams` of
    its texts have ended and no unfinished one has a higher mean over its words so far; the
    ended one with the highest mean ([SEP] included) wins. beams=1 is greedy: the likeliest
    word at each step. A text that does not end is closed at `longest`. Equal scores go to
    the earlier beam and word.

    Args:
        next_word: `(ids [m, t], rows [m]) -> logits [m, words]` of the word after t; row
            says which picture each text is of.
        longest: places of a text, [CLS] and [SEP] included, at least 2.

    Raises:
        ValueError: rows, longest or beams out of range.
    """
    if rows < 1 or longest < 2 or beams < 1:
        raise ValueError(f"rows is {rows}, longest {longest} and beams {beams}; they must be "
                         "at least 1, 2 and 1")
    ids = torch.full((rows, 1, 1), START, device=device)  # [row, beam, place]
    score = torch.zeros(rows, 1, device=device)
    best = torch.full((rows, longest), PAD, device=device)
    best_mean = torch.full((rows,), -torch.inf, device=device)
    ended = torch.zeros(rows, dtype=torch.long, device=device)
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    row = torch.arange(rows, device=device)
    for t in range(1, longest):
        kept = ids.shape[1]
        logits = next_word(ids.flatten(0, 1), row.repeat_interleave(kept))
        logs = logits.float().log_softmax(1).view(rows, kept, -1)
        logs[..., [PAD, START]] = -torch.inf
        if t == longest - 1:  # the last place is for [SEP]
            logs[..., :END] = logs[..., END + 1:] = -torch.inf
        total = (score[:, :, None] + logs).flatten(1)
        score, place = total.sort(dim=1, descending=True, stable=True)
        score, place = score[:, :2 * beams], place[:, :2 * beams]
        beam, word = place // logs.shape[2], place % logs.shape[2]
        ids = torch.cat([ids[row[:, None], beam], word[..., None]], 2)

        ends = (word == END) & (torch.arange(word.shape[1], device=device) < beams)
        mean, first = torch.where(ends, score / t, -torch.inf).max(1)
        better = (mean > best_mean) & ~done
        ended += ends.sum(1)
        best_mean = torch.where(better, mean, best_mean)
        best[better] = torch.nn.functional.pad(
            ids[row, first][better], (0, longest - t - 1), value=PAD)

        going = score.masked_fill(word == END, -torch.inf)
        score, order = going.sort(dim=1, descending=True, stable=True)
        score, order = score[:, :beams], order[:, :beams]
        ids = ids[row[:, None], order]
        done |= (ended >= beams) & (best_mean >= score[:, 0] / t)
        if done.all():
            break
    return best[:, :int((best != PAD).sum(1).max())]
