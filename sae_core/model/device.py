"""On which device a language model computes."""

import torch

from sae_core.errors import UserError


def usable(device: "str | torch.device | None") -> str:
    """`device`, by default CUDA where there is one; raises `UserError` for one that cannot be used here."""
    name = str(device) if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.zeros(1, device=name).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:  # what torch raises where it was built without CUDA
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return name
