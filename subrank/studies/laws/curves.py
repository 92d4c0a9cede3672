"""What a dictionary cost to train and how well it did on the way: the log of `subrank train`, and the compute hull.

    FLOPs per token = 2 d n + 8 d k    where a batch keeps k latents per token (topk, batchtopk, matryoshka)
                    = 10 d n           where codes are dense (jumprelu, gated, relu)

a multiplication and an addition counting as two: d n for the encoder; then per active latent d each for the decoder,
its two gradients and the encoder's. The language model, which all sets of a sweep share, and auxiliary losses are left
out.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sae_core.errors import UserError
from sae_core.files import parse_json
from sae_core.sites import Site

LOG = "log.jsonl"
"""What `subrank train` leaves in the folder of a set, or of a sweep."""
WIDTH = 0.2
"""Checkpoints are means over the logged steps within a factor exp(0.2) of tokens."""
_SPARSE = ("topk", "batchtopk", "matryoshka")


@dataclass(frozen=True)
class Checkpoint:
    """A dictionary at some moment of its training."""

    name: str
    """Its set."""
    n_latents: int
    tokens: float
    flops: float
    loss: float
    """FVU."""


def flops_per_token(kind: str, d_in: int, n_latents: float, k: float) -> float:
    """What a dictionary of that kind costs to train, per token."""
    return 2 * d_in * n_latents + 8 * d_in * k if kind in _SPARSE else 10 * d_in * n_latents


def logged(folder: str | None, site: Site) -> list[tuple[float, float]]:
    """(tokens, FVU) of a set while it trained, by the log that lies with it or with its sweep; empty without one.

    Only steps at the full learning rate: while the rate rises or falls the loss does not fall as a power of tokens.
    Means of ln tokens and ln FVU within bins, since a logged FVU is that of one batch.
    """
    if folder is None:
        return []
    rows = _rows(Path(folder) / LOG, None, site) or _rows(Path(folder).parent / LOG, Path(folder).name, site)
    bins: dict[int, list[tuple[float, float]]] = defaultdict(list)
    top = max((lr for _, _, lr in rows), default=0.0)
    for tokens, fvu, lr in rows:
        if lr == top and fvu > 0:
            bins[int(math.log(tokens) / WIDTH)].append((math.log(tokens), math.log(fvu)))
    means = [[sum(values) / len(values) for values in zip(*each, strict=True)] for _, each in sorted(bins.items())]
    return [(math.exp(tokens), math.exp(fvu)) for tokens, fvu in means]


def _rows(path: Path, member: str | None, site: Site) -> list[tuple[float, float, float]]:
    """(tokens, FVU, learning rate) of the lines on a member, or on all; lines that say less are passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            value = parse_json(line, "the line")
            if value["site"] == str(site) and member in (None, value["member"]):
                rows.append((float(value["tokens"]), float(value["fvu"]), float(value["lr"])))
        except (LookupError, TypeError, ValueError, UserError):
            continue
    return rows


def lower_hull(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """The corners of the lower convex hull of ln loss over ln FLOPs, as far as it falls, by rising FLOPs.

    A power law with an irreducible term is convex there, so the best dictionaries at every compute lie on one.
    """
    corners: list[Checkpoint] = []
    for point in sorted(checkpoints, key=lambda each: (each.flops, each.loss)):
        while len(corners) > 1 and _turn(corners[-2], corners[-1], point) <= 0:
            corners.pop()
        corners.append(point)
    lowest = min(range(len(corners)), key=lambda i: corners[i].loss, default=-1)
    return corners[: lowest + 1]


def _turn(a: Checkpoint, b: Checkpoint, c: Checkpoint) -> float:
    """Above 0 where the way from a over b to c turns upwards."""
    (x1, y1), (x2, y2) = ((math.log(q.flops / p.flops), math.log(q.loss / p.loss)) for p, q in ((a, b), (b, c)))
    return x1 * y2 - x2 * y1
