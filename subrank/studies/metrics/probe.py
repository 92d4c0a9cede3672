"""Which single latent tells best whether something is true of a token, and how well: probe loss.

    P(y = 1 | x) = sigmoid(w z_i(x) + b),    z_i the latent before its activation, standardised on training tokens
    loss_i       = mean of -log P(y | x) + RIDGE w^2 / 2

Gao et al. 2024, section 4.2. Of all latents those `CANDIDATES` are fitted whose score |sum (y - mean y) z_i|, the slope
of the loss at w = 0, is largest on training tokens: by Newton's method, all at once. The one of least training loss is
chosen, and its loss on held-out tokens counts: of thousands of latents some fit any training labels by chance. Beside
it stand the best principal component and the best coordinate of the activation, chosen in the same way, and the
labels' entropy, which is what shuffled labels leave. Cost: two encodings of the training tokens and one of those held
out, n multiplications a token and task, and some ten sigmoids a candidate, token and task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.metrics import estimate_from
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.saes import SAE
from sae_core.estimate import Estimate
from subrank.studies.metrics.reading import Rows

Reader = Callable[[Tensor], Tensor]
"""From activations `[tokens, d_in]` to one column of values for each latent."""
CANDIDATES = 32
NEWTON_STEPS, LONGEST_STEP = 25, 2.0
RIDGE = 1e-4
"""Keeps w finite where a latent tells everything."""
_ROWS = 512
"""Tokens whose latents are dense at a time."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Answers to yes-or-no questions of tokens, of which each is asked of some."""

    names: tuple[str, ...]
    rows: Rows
    true: Bool[Tensor, "tasks tokens"]
    asked: Bool[Tensor, "tasks tokens"]


@dataclass(frozen=True, eq=False)
class Probed:
    """The best column for each task, and its mean loss on held-out tokens, in nats, also of contexts resampled."""

    column: Int[Tensor, "tasks"]
    loss: Float[Tensor, "tasks"]
    resamples: Float[Tensor, "tasks resamples"]


def mean_loss(probed: Sequence[Probed]) -> Estimate:
    """The mean over all tasks, with its interval over contexts; the tasks are what they are."""
    resamples = torch.cat([each.resamples for each in probed]).nanmean(0)  # NaN: no token that is asked was drawn
    return estimate_from(torch.cat([each.loss for each in probed]).mean().item(), resamples)


def before_activation(dictionary: Dictionary) -> Reader:
    """The latents before their activation; the codes, where a dictionary has nothing before them."""
    return dictionary.pre if isinstance(dictionary, SAE) else dictionary.encode


@torch.no_grad()
def probe(read: Reader, training: Labels, held: Labels) -> Probed:
    """The best column of `read` for each task by training tokens, with its losses on held-out ones."""
    scores, mean, deviation = _scores(read, training)
    candidates = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1).indices
    union, place = candidates.unique(return_inverse=True)

    def standardised(x: Tensor) -> Tensor:
        columns = torch.cat([read(few)[:, union] for few in x.split(_ROWS)])
        return ((columns - mean[union]) / deviation[union]).clamp(-30, 30)

    z, z_held = standardised(training.rows.x), standardised(held.rows.x)
    best, loss, resamples = [], [], []
    for task in range(len(training.names)):
        tokens, columns = training.asked[task], place[task]
        y = training.true[task][tokens].to(z)
        w, b = fit(z[tokens][:, columns], y)
        least = int(nats(z[tokens][:, columns], y, w, b).mean(0).argmin())
        tokens, column = held.asked[task], columns[least]
        y = held.true[task][tokens].to(z)
        losses = nats(z_held[tokens][:, column, None], y, w[least, None], b[least, None])[:, 0]
        best.append(union[column])
        loss.append(losses.double().mean())
        resamples.append(held.rows.chosen(tokens).resampled(losses, torch.ones_like(losses)))
    return Probed(torch.stack(best), torch.stack(loss), torch.stack(resamples))


def _scores(read: Reader, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """(|score| of each task and column, mean of each column, its standard deviation), some rows at a time."""
    # with v_t = y_t - mean y over the tokens that are asked, 0 elsewhere, sum_t v_t = 0: z need not be centred first
    inside, true = labels.asked.to(labels.rows.x), (labels.asked & labels.true).to(labels.rows.x)
    v = true - inside * true.sum(1, keepdim=True) / inside.sum(1, keepdim=True)
    pulls, moments = [], []
    for x, part in zip(labels.rows.x.split(_ROWS), v.split(_ROWS, dim=1), strict=True):
        z = read(x)
        pulls.append(part @ z)
        moments.append(torch.stack([z.double().sum(0), z.double().square().sum(0)]))
    mean, square = torch.stack(moments).sum(0) / v.shape[1]
    deviation = (square - mean.square()).clamp_min(1e-12).sqrt().to(z)  # one that never varies tells nothing
    return torch.stack(pulls).sum(0).abs() / deviation, mean.to(z), deviation


def nats(z: Float[Tensor, "tokens m"], y: Float[Tensor, "tokens"], w: Tensor, b: Tensor) -> Float[Tensor, "tokens m"]:
    """-log P(y | z) of every token and column."""
    logit = z * w + b
    return F.softplus(logit) - y[:, None] * logit


def fit(z: Float[Tensor, "tokens m"], y: Float[Tensor, "tokens"]) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
    """w and b of a logistic regression on each column alone, by Newton's method with bounded steps."""
    # gradient  g_w = mean (p - y) z + RIDGE w,   g_b = mean (p - y)
    # Hessian   h_ww = mean q z^2 + RIDGE,  h_wb = mean q z,  h_bb = mean q,   q = p (1 - p)
    n, share = len(z), y.mean().clamp(1e-6, 1 - 1e-6)
    w, b = torch.zeros_like(z[0]), torch.full_like(z[0], share.logit().item())
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(z * w + b)
        off, q = p - y[:, None], p * (1 - p)
        qz = q * z
        g_w, g_b = (off * z).sum(0) / n + RIDGE * w, off.mean(0)
        h_ww, h_wb, h_bb = (qz * z).sum(0) / n + RIDGE, qz.sum(0) / n, q.mean(0) + 1e-9
        determinant = (h_ww * h_bb - h_wb.square()).clamp_min(1e-20)
        dw = (h_bb * g_w - h_wb * g_b) / determinant
        db = (h_ww * g_b - h_wb * g_w) / determinant
        shrink = (LONGEST_STEP / torch.maximum(dw.abs(), db.abs()).clamp_min(1e-12)).clamp_max(1)
        w, b = w - shrink * dw, b - shrink * db
        if (shrink * torch.maximum(dw.abs(), db.abs())).max() < 1e-4:
            break
    return w, b


def entropies(training: Labels, held: Labels) -> Sequence[float]:
    """For each task the held-out loss of the training labels' share of yes: what is known without any input."""
    losses = []
    for task in range(len(training.names)):
        share = training.true[task][training.asked[task]].double().mean()
        rate = held.true[task][held.asked[task]].double().mean()
        losses.append(-(rate * share.log() + (1 - rate) * (1 - share).log()).item())
    return losses
