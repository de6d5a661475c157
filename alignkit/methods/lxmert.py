"""LXMERT: words and regions of a picture are read alone, then together; five tasks teach it.

Paper: LXMERT: Learning Cross-Modality Encoder Representations from Transformers. Tan,
Bansal, EMNLP 2019, arXiv 1908.07490.

Claim: encoders of words and of regions do not by themselves learn what belongs to what.
Trained first on pictures with sentences, by hiding words and regions that the other side
can fill in, by mismatched pairs and by questions, a fused model answers questions about
pictures better than the same network trained on the questions alone.

Use it when: you have regions with boxes and texts that name them, and a model is to fill in what
is missing in words from a picture: with another's picture it lost half of the content words and
none of the little ones. Keep the head of the answers when you tune (.61 of answers right): with a
new one, and one or two examples of an answer, it gave .03, less than the questions give away.

Equations, h the words and v the regions after layers of their own, in each layer of both:
    h' = LN(h + Att(h; v)),  v' = LN(v + Att(v; h)),  one and the same Att and LN
    h ← MLP(Self(h')),  v ← MLP(Self(v')),  each its own, LN(x + f(x)) throughout
    x = tanh(W h_[CLS] + b)
    pretraining = CE(masked words) + smoothL1(masked features) + CE(their kinds)
                  + CE(matched?) + CE(answers), each of weight 1
    tuning = Σ_a BCE(answer logits of x, one-hot answer), mean over the questions
Regions enter as ½ (LN(W f + b) + LN(W' box + b')): neither feature nor place outweighs.

Frozen: the encoder that sees the regions; all else is trained.
Exact property: regions have no order: turned with their boxes their outputs turn, and words
and x do not change. Where what looks from one side to the other gives 0, words with their
own picture are words with another.
Deviations (official files at commit 0db1182): width 64, layers 1, 1 and 2 (9, 5 and 5 of width
768 there); regions are the plates of scenes with features of EfficientNet-Lite0 (a detector's 36
boxes), 2 to 5 of them, padding masked; no embedding of a segment (one row that never learns,
modeling.py:271); kinds are clusters by k-means (the detector's classes and attributes); they are
asked of masked regions alone, as in the paper, where the code asks all and weighs by the
detector's confidence (lxrt/modeling.py:962-972, pretrain/lxmert_pretrain.py:201); features are
standardised, so the mean stands for a masked region as 0 does there (lxmert_pretrain.py:121),
another region is one of the batch (of any picture, pretrain/lxmert_data.py:136), a random word
no special one (any of the table, lxmert_pretrain.py:93), every row has a masked word, and the
features' loss is the mean over the masked, where the code divides the mean over all regions by
0.15 (modeling.py:161), equal on average alone; of a question one answer is right (soft scores of
ten people); the answers' head begins anew in tuning, where the code copies its hidden layer and
the rows of answers it knows for VQA and GQA (tasks/vqa.py:54, pretrain/qa_answer_table.py:84;
not for NLVR2, tasks/nlvr2.py:50); the bias before a region's LayerNorm begins at random numbers
(there at 0, so that a masked region's first gradients are 1e6 times too large); no dropout;
words are whole; AdamW with a cosine, second beta .95, warm-up .05, gradients clipped at 1
(BertAdam without its bias correction, linear, .999, and in tuning .1 and 5: tasks/vqa.py:71,
99). Of its pretraining see `data_scripts/train_fusion.py`: masked words alone come first, half
of the words are masked (15 %), three rows in ten get another picture's words and are then asked
for the match alone (half, asked for all).
Reconstructed: nothing of the network: it agrees with the LXMERT of transformers in value and
gradient (tests/test_fusion.py), and the five losses, their gradients by every weight and the
tuning loss with the official code on the same numbers (1e-9; regions asked as told above). In
both of these `padding_idx` holds the first place of a sentence still (modeling.py:270), of which
the paper says nothing; here it learns.
The headline again, by another reader on seeds 5000 to 5007
(other splits and questions, the same eight models): -.049 [-.062, -.036] at 97.5 %, no gain as
before.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs, Tokens
from alignkit.data.questions import ANSWERS, words
from alignkit.parts import Method
from alignkit.parts.fusion import STD, Fused, FusionModel, FusionSettings
from alignkit.parts.fusion_tasks import know_regions, task_batch, task_losses
from alignkit.parts.text import IGNORED, SPECIAL


@dataclass(frozen=True)
class LxmertSettings:
    """Shapes, words and answers of the model; region_width is taken from the pairs. tasks:
    of pretraining, some of `FIVE`; none: it is tuned on answers. seed: of k-means."""

    model: FusionSettings = FusionSettings()
    vocabulary: tuple[str, ...] = field(default=(*SPECIAL, *words()), repr=False)
    answers: tuple[str, ...] = field(default=tuple(ANSWERS), repr=False)
    tasks: tuple[str, ...] = ()
    seed: int = 0


class Lxmert(Method):
    """Columns: `text` (captions or questions), `image_regions` and `image_boxes` (see
    `add_regions`); label `answer`, `IGNORED` (−100) where a row asks nothing."""

    settings: LxmertSettings

    def build(self, settings: LxmertSettings, pairs: Pairs) -> None:
        seen, s = pairs["image_regions"], settings
        shape = replace(s.model, region_width=seen.values.shape[2])
        self.model = FusionModel(shape, s.vocabulary, s.answers)
        # A hidden region is 0 here: with a bias of 0 as well its LayerNorm has a slope of 1e6.
        nn.init.normal_(self.model.region_in.bias, std=STD / shape.width**0.5)
        real = seen.values[seen.mask]
        if s.tasks:
            know_regions(self.model, real, s.seed)
        else:  # no kinds are asked
            self.model.region_mean.copy_(real.mean(0))
            self.model.region_scale.copy_(real.std(0).clamp_min(1e-6))

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """Ids of words, regions and boxes; in pretraining masked, and some swapped."""
        ids = self.model.tokens(rows["text"])
        answer = rows.labels.get("answer", torch.full([len(rows)], IGNORED))
        regions, boxes = rows["image_regions"], rows["image_boxes"]
        if not self.settings.tasks:
            return {"text_ids": ids, "image_regions": regions, "image_boxes": boxes,
                    "answer": answer, "item": rows.item}
        batch = task_batch(self.model, ids, answer, regions, boxes, rows.item, generator,
                           self.settings.tasks)
        return {**batch, "text_ids": batch["words"], "image_regions": batch["regions"],
                "image_boxes": boxes}

    def encode(self, batch: dict) -> dict[str, dict[str, Tokens]]:
        """Regions and words after their own layers; they have not met yet."""
        words, regions = self.model.alone(batch["text_ids"], batch["image_regions"],
                                          batch["image_boxes"])
        return {"image": {"regions": regions}, "text": {"words": words}}

    def fused(self, outputs: dict) -> Fused:
        """What `encode` gives, read together."""
        return self.model.together(outputs["text"]["words"], outputs["image"]["regions"])

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        fused = self.fused(outputs)
        if self.settings.tasks:
            return task_losses(self.model, batch, fused)
        asks = batch["answer"] != IGNORED
        logits = self.model.answer_logits(fused)[asks]
        right = F.one_hot(batch["answer"][asks], logits.shape[1]).to(logits)
        each = F.binary_cross_entropy_with_logits(logits, right, reduction="none").sum(1)
        return {"answers_loss": each.sum() / asks.sum().clamp(min=1)}

    def score(self, query: dict, gallery: dict) -> Tensor:
        """How much more each two belong together than not; one side are words, the other
        regions. Every two go through the layers over both: n · m times their cost."""
        if "regions" in query:
            return self.score(gallery, query).T
        (x, is_x), (y, is_y) = query["words"], gallery["regions"]
        rows = [self.model.match_logits(self.model.together(
            Tokens(a.expand(len(y), -1, -1), real.expand(len(y), -1)), Tokens(y, is_y)))
            for a, real in zip(x, is_x, strict=True)]
        return torch.stack([row[:, 1] - row[:, 0] for row in rows])
