"""What training takes in: activations, and what the language model makes of a reconstruction."""

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from sae_core.outliers import NO_LIMITS, Limits
from sae_core.sites import Site


@runtime_checkable
class ActivationSource(Protocol):
    """Where training takes activations from: blocks of batches, each a pure function of its number and steps."""

    @property
    def sites(self) -> tuple[Site, ...]: ...

    @property
    def batch(self) -> int:
        """Tokens per batch."""
        ...

    def block(
        self, block: int, limits: Limits = NO_LIMITS, steps: int | None = None
    ) -> Iterator[Mapping[Site, Tensor]]:
        """The batches `[batch, d_in]` of one block; the same tokens at every site, without outliers of any.

        Training takes at most `steps` batches from its beginning on: what is beyond need not be there.
        """
        ...


@runtime_checkable
class Downstream(Protocol):
    """What a reconstruction does to the language model's predictions."""

    def __call__(self, site: Site, x_hat: Tensor, batch: Mapping[Site, Tensor]) -> Tensor:
        """KL(model || model with `x_hat` at `site`) in nats per token, differentiable in `x_hat`."""
        ...
