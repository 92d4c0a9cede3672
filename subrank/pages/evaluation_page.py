"""The page of `subrank evaluate`, and the section on a set's dictionaries with which every page ends."""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from markupsafe import Markup

from editing.loss_recovered import Hurt, Loss
from editing.set_evaluation import DictionaryReport, Evaluation, SetPair, perplexity
from editing.set_quality import SetQuality
from sae_core.evaluation.reconstruction import Quality
from sae_core.sites import Site
from subrank.pages.evaluation_figures import frontier_figure, site_figure
from subrank.pages.page import MISSING, Table, Token, figure, render

FULL_COLOUR = 4.0
"""Nats at which a token's colour is full."""


def dictionaries_section(quality: SetQuality) -> Markup:
    """Table of a set's dictionaries with the numbers to judge them by."""
    rows = []
    for site, measured in quality.quality.items():
        cost = quality.cost[site]
        losses = (f"{cost.original:.3f}", f"{cost.spliced:.3f}", f"{cost.zeroed:.2f}")
        rows.append((str(site), *first_numbers(measured), f"{cost.recovered:.3f}", *losses))
    head = ("site", *_FIRST, "loss recovered", "cross-entropy", "spliced", "site at zero")
    return render("dictionaries.html", dictionaries=Table(head, rows), outliers=outlier_notes(quality.quality))


_FIRST = ("FVU", "median", "with outliers", "L0", "dead")


def outlier_notes(quality: Mapping[Site, Quality | DictionaryReport]) -> list[dict[str, Any]]:
    """For each site with tokens of massive norm: a line where they matter, and where the first of them stand."""
    return [
        {
            "site": str(site),
            "n": measured.outliers.n,
            "share": f"{measured.outliers.variance:.1%}",
            "matter": measured.outliers.matter,
            "tokens": [
                (token.context, token.position, token.text, f"{token.norm:,.0f}") for token in measured.outliers.tokens
            ],
        }
        for site, measured in quality.items()
        if measured.outliers and measured.outliers.n
    ]


def evaluation_page(evaluation: Evaluation) -> Markup:
    """The body of the page: all sets together, then site by site."""
    only = next(iter(evaluation.sets)) if len(evaluation.sets) == 1 else None
    sites = [
        {
            "name": str(site),
            "dictionaries": _site_table(evaluation.at(site)),
            "plot": figure(site_figure(evaluation, site)),
            "similarity": _similarity_table(evaluation.similarity.get(site, ())),
            "outliers": outlier_notes({site: next(iter(evaluation.at(site).values()))}),
            "worst": [_worst(name, report.splice.worst) for name, report in evaluation.at(site).items()],
        }
        for site in evaluation.sites
    ]
    return render(
        "evaluation.html",
        evaluation={"text": evaluation.text, "tokens": evaluation.tokens, "contexts": evaluation.contexts},
        spliced=evaluation.contexts_spliced,
        n_sets=len(evaluation.sets),
        only=only,
        overview=None if only is None else _overview(evaluation.sets[only]),
        plot=None if only is not None else figure(frontier_figure(evaluation)),
        sites=sites,
        full=FULL_COLOUR,
    )


def first_numbers(measured: DictionaryReport | Quality) -> tuple[str, ...]:
    """FVU, its median over tokens, FVU with outliers, L0 and dead latents."""
    outliers = measured.outliers
    fvu = (f"{measured.fvu:.3f}", MISSING if isnan(measured.fvu_median) else f"{measured.fvu_median:.3f}")
    with_them = MISSING if outliers is None else f"{outliers.fvu:.3f}"
    return *fvu, with_them, f"{measured.l0:.1f}", f"{measured.dead:.1%}"


def _overview(reports: dict[Site, DictionaryReport]) -> Table:
    """The sites of the only set, with the numbers that are read first."""
    rows = [
        (str(site), *first_numbers(report), f"{report.splice.spliced.kl:.4f}", f"{report.splice.recovered:.3f}")
        for site, report in sorted(reports.items())
    ]
    return Table(("site", *_FIRST, "KL", "recovered (zero)"), rows)


def _site_table(reports: dict[str, DictionaryReport]) -> Table:
    """Every set at one site, and below them what the model does without any, and with the site ablated."""
    rows = [
        (
            name,
            f"{report.n_latents:,}",
            *first_numbers(report),
            f"{len(report.at_start)}",
            f"{report.cosine:.3f}",
            f"{report.norm_ratio:.3f}",
            *_losses(report.splice.spliced),
            f"{report.splice.recovered:.3f}",
            f"{report.splice.recovered_from_mean:.3f}",
        )
        for name, report in reports.items()
    ]
    splice = next(iter(reports.values())).splice
    references = (
        ("the model itself", splice.original),
        ("site at zero", splice.zeroed),
        ("site at its mean", splice.averaged),
    )
    rows += [(name, *[""] * 9, *_losses(loss), "", "") for name, loss in references]
    head = (
        *("set", "latents", *_FIRST, "at start", "cosine", "norm ratio", "cross-entropy", "perplexity"),
        *("KL", "recovered (zero)", "(mean)"),
    )
    return Table(head, rows)


def _losses(loss: Loss) -> tuple[str, str, str]:
    return f"{loss.cross_entropy:.3f}", perplexity(loss.perplexity), f"{loss.kl:.4f}"


def _similarity_table(pairs: Sequence[SetPair]) -> Table | None:
    """How alike every two sets are, the numbers of random dictionaries in brackets."""
    if not pairs:
        return None
    rows = []
    for pair in pairs:
        a, b = pair.cosine, pair.random
        beside = [(a.a_in_b, b.a_in_b), (a.b_in_a, b.b_in_a), (a.matched, b.matched)]
        shares = [(share, b.shares[least]) for least, share in a.shares.items()]
        rows.append(
            (
                f"{pair.a} / {pair.b}",
                *(f"{cosine:.3f} ({random:.3f})" for cosine, random in beside),
                *(f"{share:.1%} ({random:.1%})" for share, random in shares),
                f"{a.n_pairs} by {a.matching}",
            )
        )
    over = [f"matched ≥ {least}" for least in pairs[0].cosine.shares]
    return Table(("sets a / b", "a in b", "b in a", "matched", *over, "pairs"), rows)


def _worst(name: str, contexts: Sequence[Hurt]) -> dict:
    """The contexts on which a set's dictionary costs the model most."""
    shown = [
        {
            "number": context.context,
            "position": context.position,
            "before": perplexity(context.perplexity),
            "after": perplexity(context.perplexity_spliced),
            "tokens": [_token(*token) for token in zip(context.tokens, context.rise, strict=True)],
        }
        for context in contexts
    ]
    return {"set": name, "contexts": shown}


def _token(text: str, rise: float | None) -> Token:
    if rise is None:
        return Token(text, None)
    return Token(text, max(-1.0, min(1.0, rise / FULL_COLOUR)), f"{rise:+.2f} nats")
