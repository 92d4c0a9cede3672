"""What `evaluate --check` computes again of two dictionaries drawn at random, a context at a time.

    FVU = sum |x - x_hat|^2 / sum |x - m|^2,   m the mean of x;      L0 = mean number of latents that are not zero

over the content tokens that are no outliers, x being recorded and x_hat = decode(encode(x)); and over the tokens that
follow others, with x as it is, with x_hat and with 0 in its place at all of those,

    cross-entropy = mean of -log p(next token),      KL = mean of sum p (log p - log p'), p' the edited model's
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from editing.loss_recovered import SpliceReport
from editing.set_evaluation import Evaluation
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site
from subrank.checking.plain_runs import Formula, activations, kl, limit_of, log_probs, mean
from subrank.checking.recomputed import Recomputed, drawn

DICTIONARIES = 2


@torch.no_grad()
def recomputed(
    model: LanguageModel,
    sets: Mapping[str, Mapping[Site, Dictionary]],
    contexts: Int[Tensor, "contexts pos"],
    reported: Evaluation,
    seed: int,
) -> list[Recomputed]:
    """FVU, L0 and losses of `DICTIONARIES` of the sets; `contexts` are all that were measured on."""
    places = [(name, site) for name, by_site in sets.items() for site in sorted(by_site)]
    numbers = []
    for name, site in drawn(places, DICTIONARIES, seed):
        dictionary, report = sets[name][site], reported.sets[name][site]
        at, limit = f"{site} of {name}", min(limit_of(each[site]) for each in sets.values() if site in each)
        fvu, l0 = _reconstruction(model, dictionary, site, contexts)
        numbers += [Recomputed(f"FVU at {at}", report.fvu, fvu), Recomputed(f"L0 at {at}", report.l0, l0)]
        few = contexts[: reported.contexts_spliced]
        numbers += _losses(model, dictionary, (site, at, limit), few, report.splice)
    return numbers


def _reconstruction(
    model: LanguageModel, dictionary: Dictionary, site: Site, contexts: Int[Tensor, "contexts pos"]
) -> tuple[float, float]:
    """(FVU, L0)."""
    by_context = [activations(model, tokens, [site])[site][model.content(tokens)] for tokens in contexts]
    by_context = [x[~(x.norm(dim=-1) > limit_of(dictionary))] for x in by_context]
    center = torch.cat(by_context).double().mean(0)
    error = spread = active = 0.0
    for x in by_context:
        f = dictionary.encode(x)
        error += float((x.double() - dictionary.decode(f).double()).pow(2).sum())
        spread += float((x.double() - center).pow(2).sum())
        active += int((f != 0).sum())
    return error / spread, active / sum(map(len, by_context))


def _losses(
    model: LanguageModel,
    dictionary: Dictionary,
    place: tuple[Site, str, float],
    contexts: Int[Tensor, "contexts pos"],
    report: SpliceReport,
) -> list[Recomputed]:
    site, at, limit = place
    nll: dict[str, list[float]] = {"": [], "spliced": [], "zeroed": []}
    divergence: dict[str, list[float]] = {"spliced": [], "zeroed": []}
    for tokens in contexts:
        mask, scored = model.content(tokens), model.content(tokens[1:])
        edits = {
            "spliced": Formula(site, lambda h: dictionary.decode(dictionary.encode(h)), mask, limit_of(dictionary)),
            "zeroed": Formula(site, torch.zeros_like, mask, limit),
        }
        runs = {"": log_probs(model, tokens)} | {name: log_probs(model, tokens, edit) for name, edit in edits.items()}
        for name, run in runs.items():
            nll[name] += (-run[:-1].gather(-1, tokens[1:, None])[:, 0])[scored].tolist()
        for name in edits:
            divergence[name] += kl(runs[""][:-1], runs[name][:-1])[scored].tolist()
    numbers = [Recomputed("cross-entropy of the model", report.original.cross_entropy, mean(nll[""]))]
    for name in divergence:
        loss = getattr(report, name)
        numbers.append(Recomputed(f"cross-entropy, {at} {name}", loss.cross_entropy, mean(nll[name])))
        numbers.append(Recomputed(f"KL, {at} {name}", loss.kl, mean(divergence[name])))
    return numbers
