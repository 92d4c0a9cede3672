"""Dashboards of features in the form that SAEDashboard hands to Neuronpedia: `SITE/batch-0.json`, `batch-1.json`, ...

A file holds model, layer, name of the set, and `BATCH` features, each with its density, a histogram of its activations,
one of its effects on the logits, the tokens at both ends of that, and its strongest examples. Form and names of all
values are those of SAEDashboard's `neuronpedia_dashboard.py` and `neuronpedia_converter.py`, and what its export to
Neuronpedia reads (`neuronpedia_export.py`). Its tables of neurons and of correlated features are left empty. Cost: one
more pass over the codes that a survey keeps, and an unembedding per latent.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.atlas import logit_changes
from circuits.features.card import stored_examples
from circuits.features.catalogue import Catalogue
from circuits.features.reading import Piece
from sae_core.files import write_json, write_text
from sae_core.sites import Site

BATCH, N_BINS, N_TOKENS, N_EXAMPLES = 128, 50, 10, 8
"""Features per file; of each the bins of a histogram, the tokens at one end of the logits, and the examples."""
_TABLES = [f"neuron_alignment_{each}" for each in ("indices", "values", "l1")]
_TABLES += [f"correlated_{which}_{each}" for which in ("neurons", "features") for each in ("indices", "l1", "pearson")]
_TABLES += ["decoder_weights_dist", "vector"]


def write_dashboards(folder: Path, catalogue: Catalogue, dataset: str, *, batch: int = BATCH) -> None:
    """Write the dashboards of all latents that are active on the text, the `dataset`, and which others there are."""
    counts = activation_counts(catalogue)
    read = {"n_prompts_total": len(catalogue.training), "n_tokens_in_prompt": catalogue.training.shape[1]}
    for site in sorted(catalogue.dictionaries):
        alive, n = catalogue.alive(site), len(catalogue.dictionaries[site].directions)
        place = {"model_id": Path(catalogue.model.name).name, "layer": site.layer}
        place |= {"sae_set": f"{site.stream}-{n}".replace("_", "-")}
        for number, part in enumerate(torch.tensor(alive, dtype=torch.long).split(batch)):
            features = [each | read | {"dataset": dataset} for each in _features(catalogue, site, part, counts[site])]
            value = place | {"sae_id_suffix": None, "features": features}
            write_text(folder / str(site) / f"batch-{number}.json", json.dumps(value, allow_nan=False))
        skipped = {"log_sparsity": 1, "skipped_indexes": sorted({*range(n)} - {*alive})}
        write_json(folder / str(site) / "skipped_indexes.json", place | {"layer": str(site.layer)} | skipped)


def activation_counts(catalogue: Catalogue) -> dict[Site, Int[Tensor, "n_latents bins"]]:
    """How often each latent's activation lies in each of `N_BINS` equal parts of (0, its largest activation]."""
    largest = {site: latents.statistics.top[:, 0] for site, latents in catalogue.tally.sites.items()}
    counts = {site: torch.zeros(len(top) * N_BINS, dtype=torch.long) for site, top in largest.items()}

    def add(site: Site, piece: Piece) -> None:
        row, position, latent = piece.f.nonzero(as_tuple=True)
        share, latent = piece.f[row, position, latent].cpu() / largest[site][latent.cpu()], latent.cpu()
        place = latent * N_BINS + (N_BINS * share).ceil().long().sub(1).clamp(0, N_BINS - 1)
        counts[site].index_add_(0, place, torch.ones_like(place))

    catalogue.survey.read(catalogue.training, add)
    return {site: count.view(-1, N_BINS) for site, count in counts.items()}


def _features(
    catalogue: Catalogue, site: Site, latents: Int[Tensor, "k"], counts: Int[Tensor, "n_latents bins"]
) -> Iterator[dict[str, Any]]:
    """The dashboards of some latents of a site, in order."""
    # change [k, vocab]: of its ends the tokens; its histogram over N_BINS equal parts of [low, high] of each row
    change, tally = logit_changes(catalogue.tally.atlas, site, latents).cpu(), catalogue.tally.sites[site]
    low, high = change.aminmax(dim=1, keepdim=True)
    share = (change - low) / (high - low).clamp_min(torch.finfo(change.dtype).tiny)
    bins = (N_BINS * share).long().clamp_max(N_BINS - 1)
    heights = torch.zeros(len(latents), N_BINS, dtype=torch.long).scatter_add_(1, bins, torch.ones_like(bins))
    ends = [change.topk(min(N_TOKENS, change.shape[1]), largest=largest) for largest in (True, False)]
    for k, index in enumerate(latents.tolist()):
        largest = float(tally.statistics.top[index, 0])
        most, least = (([catalogue.names[i] for i in end.indices[k]], _short(end.values[k])) for end in ends)
        examples = stored_examples(tally, index, catalogue.training, catalogue.names, N_EXAMPLES)
        yield {
            "feature_index": index,
            **{name: [] for name in _TABLES},
            **{"neg_str": least[0], "neg_values": least[1], "pos_str": most[0], "pos_values": most[1]},
            "frac_nonzero": float(tally.statistics.density[index]),
            "freq_hist_data_bar_values": _short(_centres(0.0, largest)),
            "freq_hist_data_bar_heights": counts[index].tolist(),
            "logits_hist_data_bar_values": _short(_centres(float(low[k]), float(high[k]))),
            "logits_hist_data_bar_heights": heights[k].tolist(),
            "activations": [
                {
                    # the marks of the strongest, which are of no interval
                    **{"bin_min": -1, "bin_max": largest, "bin_contains": -1},
                    "tokens": list(example.tokens),
                    "values": _short(torch.tensor(example.activations)),
                    "qualifying_token_index": example.end,
                }
                for example in examples
            ],
        }


def _centres(low: float, high: float) -> Float[Tensor, "bins"]:
    return low + (torch.arange(N_BINS) + 0.5) * (high - low) / N_BINS


def _short(values: Float[Tensor, "n"]) -> list[float]:
    """Numbers to four digits."""
    return [float(f"{value:.4g}") for value in values.tolist()]
