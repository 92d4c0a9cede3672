"""Dictionaries on disk that take more memory than there is: each is opened when it is asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from sae_core.dictionaries.normalised import Autoencoder
from sae_core.sites import Site


class Opened(Mapping[Site, Autoencoder]):
    """Dictionaries by site; those that were used last are kept, as many as take `room` bytes, and one at least.

    A site's dictionary may be another object each time, with the same numbers.
    """

    def __init__(self, sites: Iterable[Site], open_at: Callable[[Site], Autoencoder], room: int):
        self._sites, self._open_at, self._room = tuple(sites), open_at, room
        self._kept: dict[Site, Autoencoder] = {}
        self._device: torch.device | str = "cpu"

    def __getitem__(self, site: Site) -> Autoencoder:
        if site not in self._sites:
            raise KeyError(site)
        dictionary = self._kept.pop(site, None)
        if dictionary is None:
            while self._kept and sum(map(_size, self._kept.values())) * (1 + 1 / len(self._kept)) > self._room:
                del self._kept[next(iter(self._kept))]  # before the next one is opened
            dictionary = self._open_at(site)
        self._kept[site] = dictionary.to(self._device)
        return self._kept[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def to(self, device: torch.device | str) -> "Opened":
        """Itself, whose dictionaries are on `device` from now on."""
        self._device = device
        return self


def _size(dictionary: Autoencoder) -> int:
    return sum(tensor.nbytes for tensor in dictionary.state_dict().values())
