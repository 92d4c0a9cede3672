"""By what dictionaries are known again: a hash of all that they are."""

import hashlib
from collections.abc import Mapping

from torch import Tensor, nn

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.sites import Site


def digest_of_dictionaries(dictionaries: Mapping[Site, Dictionary]) -> str:
    """A digest of every dictionary's site, class, settings and tensors."""
    total = hashlib.sha256()
    for site, dictionary in sorted(dictionaries.items()):
        modules = dictionary.named_modules() if isinstance(dictionary, nn.Module) else [("", dictionary)]
        for name, part in modules:
            fields = dict(vars(part))
            if isinstance(part, nn.Module):
                fields |= dict(part.named_parameters(recurse=False)) | dict(part.named_buffers(recurse=False))
            total.update(f"{site} {name} {type(part).__name__}".encode())
            for key, value in sorted(fields.items()):
                if isinstance(value, Tensor):
                    total.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
                    total.update(value.detach().float().cpu().contiguous().numpy().tobytes())
                elif isinstance(value, int | float | str) and key != "training":
                    total.update(f"{key} {value!r}".encode())
    return total.hexdigest()
