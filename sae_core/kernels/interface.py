"""What kernels there are, and what they compute on."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sums:
    """The gradient of a weight of one row per latent, as sums over the active latents of a batch:

        g[i] = sum_e factors[e] rows[places[e]],    e from bounds[i] to bounds[i + 1]

    and, where `slot[i]` is not -1, `dead[slot[i]]` besides.
    """

    latents: Int[Tensor, "active"]
    """Of each entry; they rise."""
    bounds: Int[Tensor, "n_latents_and_1"]
    places: Int[Tensor, "active"]
    factors: Float[Tensor, "active"]
    rows: Float[Tensor, "n_rows d_in"]
    slot: Int[Tensor, "n_latents"]
    dead: Float[Tensor, "n_dead d_in"]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight of one row per latent, with its copy for products and Adam's moments: all changed in place."""

    weight: Float[Tensor, "n_latents d_in"]
    copy: Float[Tensor, "n_latents d_in"]
    mean: Float[Tensor, "n_latents d_in"]
    square: Float[Tensor, "n_latents d_in"]


@dataclass(frozen=True)
class Adam:
    """What a step of Adam is given."""

    rate: float
    step: int
    """Steps with this one."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@runtime_checkable
class Kernels(Protocol):
    """What `fused` and `plain` both offer."""

    def decode(self, indices: Tensor, values: Tensor, offsets: Tensor, W: Tensor) -> Tensor:
        """Row b is the sum of values[e] W[indices[e]] over its entries, `offsets[b]` to `offsets[b + 1]`."""
        ...

    def slopes(self, indices: Tensor, offsets: Tensor, g: Tensor, W: Tensor) -> Tensor:
        """<g[b], W[indices[e]]> for each entry e of each row b: the gradient of `decode` in the values."""
        ...

    def step_rows(self, gradient: Sums, matrix: Matrix, adam: Adam, unit: bool) -> None:
        """One step of Adam for each row, and its copy:

            m = b1 m + (1 - b1) g,  s = b2 s + (1 - b2) g^2,  w -= rate / (1 - b1^t) m / (sqrt(s / (1 - b2^t)) + eps)

        `unit` rows are directions: g loses its part along the row, which becomes a unit vector again.
        """
        ...

    def group_keys(self, pre: Tensor, group: int) -> Tensor:
        """`[batch, n / group]` integers that sort like the largest of each group of neighbours, of equals the first.

        In Triton for 16-bit floats and at most 2^16 groups.
        """
        ...
