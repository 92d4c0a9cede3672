"""What is measured of a dictionary besides its reconstruction, as plain numbers, each beside its controls.

The metrics are those of Gao et al. 2024 (sections 4 and 5). `metrics/measuring.py` measures them all; how, is said in
modules beside it, one for each.
"""

from dataclasses import dataclass

from sae_core.estimate import Estimate


@dataclass(frozen=True)
class Metric:
    """One number of each dictionary, in words."""

    title: str
    """As an axis of a figure or the head of a column says it."""
    meaning: str
    """In a sentence."""
    higher: bool = False
    """Whether a higher number is better."""


METRICS = {
    "fvu": Metric("FVU", "share of the variance that the reconstruction does not explain"),
    "loss_rise": Metric("rise of the loss, nats", "cross-entropy with the reconstruction spliced in, less without"),
    "recovered": Metric("loss recovered", "spliced loss on the scale site at zero = 0, untouched = 1", higher=True),
    "compute": Metric("share of compute", "what a model of the spliced loss took to train, over this one", higher=True),
    "probe_loss": Metric("probe loss, nats", "of the latent that alone tells the answer best; mean of tasks"),
    "precision": Metric("precision of n-grams", "where an n-gram rule expects a latent: active there", higher=True),
    "recall": Metric("recall of n-grams", "where a latent is active: expected by its n-gram rule", higher=True),
    "effect_sparsity": Metric("share of logits moved", "(L1 / L2)^2, over its size, of an ablation's effect on logits"),
    "threshold_fvu": Metric("FVU by threshold", "with one threshold that lets as many latents through, on average"),
    "refined_fvu": Metric("FVU, values refined", "with the best values of the active latents, the decoder held fixed"),
    "refined_shift": Metric("shift by refining", "share by which refining raises the values of active latents"),
}
"""By name, in the order in which they are shown. A dictionary has those that could be measured."""


@dataclass(frozen=True)
class Measured:
    """A number, and the same of what it must be compared with."""

    value: Estimate
    controls: dict[str, Estimate]
    """By what they are, the first being the one to draw."""


@dataclass(frozen=True)
class ProbeTask:
    """One yes-or-no question of tokens, and the latent that answers it best; losses in nats on held-out contexts."""

    name: str
    n_true: int
    n_tokens: int
    """Held-out tokens that it is asked of, and those of them with the answer yes."""
    latent: int
    """The best on training contexts."""
    loss: Estimate
    component: float
    """Loss of the best principal component."""
    channel: float
    """Of the best coordinate of the activation."""
    labels_alone: float
    """Without any input: what shuffled labels leave."""


@dataclass(frozen=True)
class ReadAt:
    """A dictionary read at another number of active latents than it was trained for."""

    k: int
    fvu: Estimate
    """With the k largest latents of every token."""
    threshold_fvu: Estimate
    """With all latents above one threshold, which lets k through on average over training contexts."""
    threshold_l0: float
    """How many it lets through on held-out contexts."""


@dataclass(frozen=True)
class SetMetrics:
    """One dictionary of a set; what could not be measured is left out."""

    n_latents: int
    l0: Estimate
    """Active latents per held-out token."""
    dead: float
    """Share of latents that are active on no token of this text."""
    numbers: dict[str, Measured]
    """By the names of `METRICS`."""
    tasks: tuple[ProbeTask, ...] = ()
    curve: tuple[ReadAt, ...] = ()
    """FVU at other k (progressive codes)."""
