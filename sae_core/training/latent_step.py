"""The step of both matrices in one pass: each row's gradient is summed, projected, given to Adam, and never written.

As matrices the gradients, their projection, Adam, the unit rows and the copies for products in bfloat16 take 114 bytes
for each parameter of `W_enc` and the one of `W_dec`; row by row 52, which is nearly half the time of a step of some
thousand tokens. `kernels/interface.py` has the arithmetic.
"""

import torch
from torch import Tensor, nn

from sae_core.dictionaries.deferred import Deferred
from sae_core.kernels.interface import Adam, Kernels, Matrix, Sums


class LatentStep:
    """What steps the rows of `W_enc` and `W_dec`, `[n_latents, d_in]`; their moments are those of `optimizer`.

    Copies of both in `dtype`, for products and gathers, are kept as the weights change.
    """

    def __init__(
        self, weights: dict[str, nn.Parameter], optimizer: torch.optim.Adam, dtype: torch.dtype, kernels: Kernels
    ):
        self._kernels, self._steps = kernels, []
        self._encoder, self._decoder = (
            self._matrix(weights[name], optimizer.state[weights[name]], dtype) for name in ("W_enc", "W_dec")
        )

    def _matrix(self, weight: nn.Parameter, state: dict[str, Tensor], dtype: torch.dtype) -> Matrix:
        rows = weight.detach()
        if not state:
            state["step"] = torch.zeros((), device=rows.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(rows), torch.zeros_like(rows)
        self._steps.append(state["step"])
        return Matrix(rows, rows.to(dtype), state["exp_avg"], state["exp_avg_sq"])

    def begin(self) -> Deferred:
        """Where the next loss reads both matrices, and leaves what their gradients sum up."""
        return Deferred(self._encoder.copy, self._decoder.copy, self._kernels)

    @torch.no_grad()
    def finish(self, deferred: Deferred, rate: float, step: int) -> None:
        """Step `step`, the first being 1, with what a backward pass has left."""
        assert deferred.encoder and deferred.decoder  # that of any loss of a reconstruction
        (codes, x), (decoded, g) = deferred.encoder, deferred.decoder
        order, tokens, bounds = codes.by_latent
        slot = torch.full((codes.n_latents,), -1, device=x.device)
        dead_enc = dead_dec = self._decoder.copy[:0]
        if deferred.dead:
            dead, W_enc, W_dec = deferred.dead
            assert W_enc.grad is not None and W_dec.grad is not None
            slot[dead], dead_enc, dead_dec = torch.arange(len(dead), device=x.device), W_enc.grad, W_dec.grad
        where = codes.indices[order], bounds
        d_W_enc = Sums(*where, tokens, codes.values[order], x, slot, dead_enc)
        d_W_dec = Sums(*where, decoded.rows[order], decoded.values.detach()[order], g, slot, dead_dec)
        self._kernels.step_rows(d_W_enc, self._encoder, Adam(rate, step), False)
        self._kernels.step_rows(d_W_dec, self._decoder, Adam(rate, step), True)
        for counter in self._steps:
            counter += 1
