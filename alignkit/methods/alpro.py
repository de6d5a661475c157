"""ALPRO: pictures and words are aligned before they are read together, and a frozen prompter
says what a crop shows.

Paper: Align and Prompt: Video-and-Language Pre-training with Entity Prompts. Li, Li, Li,
Niebles, Hoi, CVPR 2022, arXiv 2112.09583.

Claim: layers over both that must also bring two strange spaces together learn slowly. A
contrastive loss on the two sides alone, before they meet, does that for them and gives hard
wrong pairs besides; and what a region shows, of which no caption speaks, can be learned from
a frozen dual encoder that names crops, instead of a detector.

Use it when: your encoders of pictures and of words were trained apart and a fused model is to
decide which belong together. Align them, with wrong pairs drawn evenly (.37 of pairs found against
.15 without): hard ones undid it (.08) in this short training. Look at the cosine of the aligned
sides too: it found more than the fused model. Entity prompts taught regions nothing here; look
first how many of the prompter's labels are right.

Equations, v and t the unit rows of both sides, s_ij = v_i · t_j / τ, e the fused [text; picture]:
    vtc_loss = mean_i ½ [−log softmax_j(s_ij)_i − log softmax_j(s_ji)_i]
    vtm_loss = CE(W e_[CLS], matched?), mean over each pair, its caption with another picture
               and its picture with another caption; others drawn by softmax(s), own left out
    mlm_loss = CE of the masked words, from e of the masked caption and the whole picture
    q = softmax_m(crop · p_m / τ'), p_m = mean over templates of the unit row of "a photo of a m"
    pem_loss = −Σ_m q_m log p(m), p = softmax(MLP(mean of e at the crop's patches)),
               mean over the crops with max_m q_m ≥ 0.2; loss = the sum
Frozen: the prompter, and what comes before the patches' own layers; all else is trained.
Exact property: the gradient of pem_loss by the logits is (p − q) / kept, and its least value
the entropy of q; q does not know what is outside the crop, a crop of all is the prompter's
zero-shot answer, and entities in another order change no decision to keep. With one pair
vtc_loss is 0.
Deviations (official files at commit 4ff6163): claims take pictures for videos, as its CC3M half
does (a still repeated four times); with `frames` above 1 layers look over time and space in turns,
as the TimeSformer (vit.py:142-213, without its dropped paths), and crops are of the given pixels.
Encoders begin as the shipped picture and text tower of two seeds (ViT and BERT), patches as its
frozen stem gives them; [SEP] is compared, which these read, not [CLS] (alpro_models.py:205);
pre-norm layers; width 64, layers 2, 2 and 1 (12, 6 and 6 of width 768). The temperature is learned
as its logarithm and kept above 0.01 (itself, from .001 to .5, :81); no dropout (BERT's .1); one
template (12, run_pretrain_sparse.py:326-362); a caption always has a masked word (or none by
chance, data_utils.py:51). Rows of equal captions are right answers, not wrong pairs (:123). A sure
label has max q ≥ threshold, as in the paper; the code compares the number of the entity (:527), so
that it drops crops of entity 0 alone (`kept(…, official=True)`). Where no label is sure the loss is
0 (0 / 0 there, :230). Crops are made as large as a picture (they stay in place among zeros,
dataset_pretrain_sparse.py:301-303; `in_place`); a picture has 4 × 4 patches (14 × 14), of which
crops have about 2 × 2 in the claims. The prompter is the shipped towers, or CLIP (trained first by
vtc_loss on the same pairs). Scores are differences of logits (probabilities rounded to four
decimals, run_video_retrieval.py:690). In several processes wrong pairs are of the own batch, as
there, where the place of the right pair is told by the rank on its machine (:121), right on one
machine alone; contrastive rows are not gathered.
Reconstructed: without vtc_loss the code would draw wrong pairs by a similarity that nothing
trains; the arm without it draws them evenly here. Soft labels, pem_loss and its gradients,
vtm_loss for given wrong pairs, and crops in place are the official code's on the same tensors.
The headline again, by another reader on seeds 5000 to 5007: -.105 [-.168, -.043] at 97.5 %, no gain
as here; there the cosine of both sides found .78 with either draw, the fused model .07 and .33.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, Stage, Temperature, info_nce, positives_of, unit
from alignkit.parts.attention import TokenEmbedding, TransformerEncoder
from alignkit.parts.crops import boxes_at, cropped, inside
from alignkit.parts.fusion import hard_negatives
from alignkit.parts.fusion_tasks import cross_entropy
from alignkit.parts.losses import logits_of
from alignkit.parts.space_time import SpaceTimeEncoder
from alignkit.parts.text import WordPieces, mask_words


@dataclass(frozen=True)
class AlproSettings:
    """Word pieces; width, heads and layers of the encoders of pictures, of words and of both;
    width of the shared space; frames of a video (1: pictures); longest text in pieces;
    temperature at the start; share of words that are masked. vtc: are both sides aligned? hard:
    are negatives of the matching drawn by similarity (else evenly)? Of entity prompts (none
    without a prompter): prompter makes frozen towers with `image`, `text`, `tokens` and
    `temperature` as `TwoTowers` has; entities, and the templates that name one; threshold,
    below which a crop's label is dropped; in_place: crops stay where they are among zeros (else
    they are made larger); area and aspect of crops: part of the picture, height by width;
    prompter_size: side of the pictures that the prompter wants (None: as they come)."""

    vocabulary: tuple[str, ...] = field(repr=False)
    width: int = 64
    heads: int = 4
    image_layers: int = 2
    text_layers: int = 2
    fusion_layers: int = 1
    shared: int = 128
    frames: int = 1
    longest: int = 16
    temperature: float = 0.07
    share: float = 0.15
    vtc: bool = True
    hard: bool = True
    prompter: Callable[[], nn.Module] | None = None
    entities: tuple[str, ...] = field(default=(), repr=False)
    templates: tuple[str, ...] = ("a photo of a {}",)
    threshold: float = 0.2
    in_place: bool = False
    area: tuple[float, float] = (0.3, 0.5)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    prompter_size: int | None = None


# Entity prompts -----------------------------------------------------------------------
@torch.no_grad()
def prompts_of(towers: nn.Module, entities: Sequence[str], templates: Sequence[str]) -> Tensor:
    """A row an entity [M, d]: the mean of its templates' unit rows, not made unit again."""
    where = next(towers.parameters()).device
    rows = []
    for template in templates:
        ids = towers.tokens([template.format(name) for name in entities])
        rows.append(towers.text(Tokens(ids.values.to(where), ids.mask.to(where))))
    return torch.stack(rows).mean(0)


def kept(labels: Tensor, threshold: float, official: bool = False) -> Tensor:
    """Which soft labels [n, M] are sure enough: their largest is at least the threshold.
    official: as the code has it, where the number of the entity is compared, so that
    with any threshold up to 1 labels of entity 0 alone are dropped (:527)."""
    largest, entity = labels.max(1)
    return (entity if official else largest) >= threshold


def entity_loss(logits: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """−Σ_m q_m log p_m, the mean over the kept rows; 0 if none is. logits of p, labels q."""
    each = -(labels * logits.log_softmax(1)).sum(1)
    return (each * keep).sum() / keep.sum().clamp(min=1)


class Alpro(Method):
    """Columns: `text`; `image_tokens`, patches row by row (or frozen features of them), of
    a video frame by frame; with a prompter `image_pixels` too, bytes or from 0 to 1."""

    settings: AlproSettings
    traits = frozenset({"ordered"})  # negatives are drawn row by row

    def build(self, settings: AlproSettings, pairs: Pairs) -> None:
        s, w = settings, settings.width
        patches = pairs["image_tokens"].values
        self.pieces = WordPieces(s.vocabulary)
        self.image_in = nn.Linear(patches.shape[2], w)
        self.class_token = nn.Parameter(torch.randn(w) * 0.02)
        self.image_places = nn.Parameter(torch.randn(patches.shape[1] // s.frames + 1, w) * 0.02)
        self.image_encoder = (
            TransformerEncoder(w, s.image_layers, s.heads) if s.frames == 1 else
            SpaceTimeEncoder(w, s.frames, s.image_layers, s.heads))
        self.words = TokenEmbedding(len(s.vocabulary), w, s.longest)
        self.text_encoder = TransformerEncoder(w, s.text_layers, s.heads)
        self.fusion = TransformerEncoder(w, s.fusion_layers, s.heads)
        self.image_head, self.text_head = nn.Linear(w, s.shared), nn.Linear(w, s.shared)
        self.temperature = Temperature(s.temperature, learned=True)
        self.match_head = nn.Linear(w, 2)
        self.word_head = nn.Sequential(nn.Linear(w, w), nn.GELU(), nn.LayerNorm(w))
        self.word_bias = nn.Parameter(torch.zeros(len(s.vocabulary)))
        if not s.vtc:  # nothing would teach them
            for part in (self.image_head, self.text_head, self.temperature):
                part.requires_grad_(False)
        if s.prompter:
            self.prompter = s.prompter().requires_grad_(False).eval()
            size = s.prompter_size or pairs["image_pixels"].shape[-1]
            with torch.no_grad():
                shared = self.prompter.image(torch.zeros(1, 3, size, size)).shape[1]
            self.register_buffer("prompts", torch.zeros(len(s.entities), shared))
            self.entity_head = nn.Sequential(nn.Linear(w, 2 * w), nn.ReLU(),
                                             nn.Linear(2 * w, len(s.entities)))

    def stages(self) -> list[Stage]:
        """The prompts are written once, then all is trained."""
        asked = [Stage("prompts", solve=self.ask)] if self.settings.prompter else []
        return [*asked, Stage()]

    def ask(self, pairs: Pairs | None = None) -> None:
        """Write the prompts of the entities; from no pairs."""
        self.prompts.copy_(prompts_of(self.prompter, self.settings.entities,
                                      self.settings.templates))

    @property
    def side(self) -> int:
        """Patches on a side of a picture."""
        return round((len(self.image_places) - 1) ** 0.5)

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """Ids, whole and masked; patches; a crop of each picture for the prompter."""
        ids = self.pieces(rows["text"], self.settings.longest)
        masked, targets = mask_words(ids, len(self.pieces), generator, self.settings.share)
        batch = {"text_ids": ids, "text_masked": masked, "text_targets": targets,
                 "image_tokens": rows["image_tokens"], "item": rows.item}
        if self.settings.prompter:
            pixels = rows["image_pixels"]
            pixels = pixels if pixels.is_floating_point() else pixels.float() / 255
            s, side = self.settings, self.side
            boxes = boxes_at(len(rows), side, generator, s.area, s.aspect)
            batch["image_inside"] = inside(boxes, side)
            batch["image_crops"] = cropped(pixels, boxes, side, s.in_place, s.prompter_size)
        return batch

    # One side alone, and both ----------------------------------------------------------
    def read(self, ids: Tokens) -> Tokens:
        """Words after their own layers [n, t, width]."""
        return self.text_encoder(self.words(ids))

    def look(self, patches: Tokens) -> Tokens:
        """A class token and the patches after their own layers [n, 1 + k, width]."""
        x, frames = self.image_in(patches.values), self.settings.frames
        first, places = self.class_token + self.image_places[0], self.image_places[1:]
        first = first.expand(len(x), -1)
        if frames > 1:
            seen = self.image_encoder(first, x.unflatten(1, (frames, -1)) + places)
            return Tokens(seen, torch.ones(seen.shape[:2], dtype=torch.bool, device=x.device))
        x = torch.cat([first[:, None], x + places], 1)
        return self.image_encoder(Tokens(x, F.pad(patches.mask, (1, 0), value=True)))

    def encode(self, batch: dict) -> dict[str, dict[str, Tensor]]:
        """Both sides apart: tokens with their mask `real`, and unit rows `z` to compare."""
        outputs = {}
        if "image_tokens" in batch:
            seen, real = self.look(batch["image_tokens"])
            outputs["image"] = {"patches": seen, "real": real,
                                "z": unit(self.image_head(seen[:, 0]))}
        if "text_ids" in batch:
            said, real = self.read(batch["text_ids"])
            end = said[torch.arange(len(said), device=said.device), real.sum(1) - 1]
            outputs["text"] = {"words": said, "real": real, "z": unit(self.text_head(end))}
        return outputs

    def fuse(self, words: Tokens, patches: Tokens) -> Tensor:
        """[text; picture] through the layers over both [n, t + 1 + k, width]."""
        both = (torch.cat(x, 1) for x in zip(words, patches, strict=True))
        return self.fusion(Tokens(*both)).values

    def word_logits(self, words: Tensor) -> Tensor:
        """[n, t, ids], with the table of words as weights."""
        return self.word_head(words) @ self.words.ids.weight.T + self.word_bias

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        """VTM on pairs and two wrong pairs for each, MLM, and what the settings ask for."""
        image, text, n = outputs["image"], outputs["text"], len(batch["item"])
        words = Tokens(text["words"], text["real"])
        patches = Tokens(image["patches"], image["real"])
        positives, scale = positives_of(batch["item"]), self.temperature()
        picture, caption = self.negatives(image["z"], text["z"], positives)
        masked, rows = self.read(batch["text_masked"]), torch.arange(n, device=picture.device)
        fused = self.fuse(  # right, wrong picture, wrong words, masked words
            Tokens(*(torch.cat([x, x, x[caption], m]) for x, m in zip(words, masked))),
            Tokens(*(x[torch.cat([rows, picture, rows, rows])] for x in patches)))
        right = (torch.arange(3 * n, device=rows.device) < n).long()
        t = words.mask.shape[1]
        losses = {"vtm_loss": F.cross_entropy(self.match_head(fused[:3 * n, 0]), right),
                  "mlm_loss": cross_entropy(self.word_logits(fused[3 * n:, :t]),
                                            batch["text_targets"])}
        if self.settings.vtc:
            losses["vtc_loss"] = info_nce(image["z"], text["z"], scale, positives)
        if self.settings.prompter:
            labels = self.labels(batch["image_crops"])
            regions = mean_of(fused[:n, t + 1:], batch["image_inside"])
            losses["pem_loss"] = entity_loss(self.entity_head(regions), labels,
                                             kept(labels, self.settings.threshold))
        return losses

    @torch.no_grad()
    def negatives(self, z: Tensor, w: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
        """For each caption [n] another picture, for each picture another caption."""
        alike = logits_of(z, w, self.temperature())
        # What is not finite is left to the trainer, which says whose rows it comes from.
        scores = alike.nan_to_num() if self.settings.hard else torch.zeros_like(alike)
        drawn = torch.default_generator  # seeded by the trainer at every step
        return hard_negatives(scores.T, positives, drawn), hard_negatives(scores, positives, drawn)

    @torch.no_grad()
    def labels(self, crops: Tensor) -> Tensor:
        """The prompter's soft labels [n, M] of crops in pixels."""
        scale = self.prompter.temperature()
        return logits_of(self.prompter.image(crops), self.prompts, scale).softmax(1)

    def score(self, query: dict, gallery: dict) -> Tensor:
        """How much more each two match than not: one side are words, the other pictures, and
        every two go through the layers over both."""
        if "patches" in query:
            return self.score(gallery, query).T
        patches, scores = Tokens(gallery["patches"], gallery["real"]), []
        for words, mask in zip(query["words"], query["real"], strict=True):
            words = words[None, :int(mask.sum())].expand(len(patches.mask), -1, -1)
            there = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
            logits = self.match_head(self.fuse(Tokens(words, there), patches)[:, 0])
            scores.append(logits[:, 1] - logits[:, 0])
        return torch.stack(scores)


def mean_of(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Mean [n, d] of the chosen (bool [n, k]) of tokens [n, k, d]."""
    part = chosen.to(tokens)
    return (tokens * part[:, :, None]).sum(1) / part.sum(1, keepdim=True)
