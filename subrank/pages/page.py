"""Results as pages that open from disk: one HTML file each, one shared copy of plotly beside them."""

import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from circuits.graph import FeatureGraph
from editing.ioi.curve import Curve
from editing.ioi.figure import Labels, ioi_figure, selection_figure
from editing.ioi.study import IOIResult
from editing.removal.evaluation import Method, Removal
from editing.removal.experiment import RemovalResult
from editing.removal.figure import removal_figure
from editing.set_quality import SetQuality
from sae_core.files import write_text
from sae_core.sites import Site

_STYLE = """
body { font: 16px/1.55 Helvetica, Arial, sans-serif; color: #1f2937; max-width: 1080px; margin: 2.5em auto; padding: 0 1.2em }
h1 { font-size: 1.9em; margin-bottom: .2em } h2 { margin-top: 2.2em; border-top: 1px solid #e5e7eb; padding-top: 1em }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .9em; text-align: right; border-bottom: 1px solid #eee }
td:first-child, th:first-child { text-align: left } th { font-weight: 600; background: #f8fafc }
.lead { font-size: 1.1em; color: #374151 } .own { background: #f3f6fa; border-left: 4px solid #1b4f9c; padding: .6em 1em }
.note { color: #6b7280; font-size: .92em } code, pre { background: #f3f4f6; border-radius: 4px; padding: .1em .35em }
pre { padding: .8em 1em; overflow-x: auto } .wide { overflow-x: auto; border: 1px solid #e5e7eb; padding: .6em; width: 94vw; margin-left: calc(50% - 47vw) }
.wide svg { width: 100%; min-width: 1400px } tr.best td { background: #ecfdf5 }
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], best: int | None = None) -> str:
    """An HTML table of texts, escaped; row number `best` is highlighted."""
    body = "".join(
        f"<tr{' class=best' if i == best else ''}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for i, row in enumerate(rows)
    )
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{body}</table>"


def dictionaries_section(measured: SetQuality) -> str:
    """Table of the dictionaries with the numbers to judge them by."""
    rows = [
        (
            str(site),
            f"{own.fvu:.3f}",
            f"{own.l0:.1f}",
            f"{own.dead:.1%}",
            f"{measured.cost[site].recovered:.3f}",
            f"{measured.cost[site].original:.3f} → {measured.cost[site].spliced:.3f} ({measured.cost[site].zeroed:.2f})",
        )
        for site, own in measured.quality.items()
    ]
    head = ("site", "FVU", "L0", "dead", "loss recovered", "cross-entropy: model → spliced (zero-ablated)")
    note = (
        "FVU: share of the activations' variance that the dictionary misses. L0: features active per token. "
        "Loss recovered: with the reconstruction spliced in, on a scale where zero-ablating the site is 0 and "
        "the untouched model is 1; cross-entropies in nats per token. All on text that was not trained on."
    )
    return table(head, rows) + f'<p class="note">{note}</p>'


def ioi_section(results: Sequence[IOIResult], labels: Labels | None = None) -> str:
    """The patching curves with what to read from them; `labels` say what features respond to."""
    return "".join(_ioi_part(result, labels) for result in results)


_KINDS = {
    "io": "only the indirect object differs",
    "swap": "the two names swap roles",
    "abc": "the second mention of the subject becomes a third name",
}
_COUNTS = (0, 1, 4, 8, 16, 32, 64)


def _ioi_part(result: IOIResult, labels: Labels | None) -> str:
    shared = f" Selection and test share their {' and '.join(result.shared)}." if result.shared else ""
    where = "all positions" if result.positions is None else f"positions {', '.join(map(str, result.positions))}"
    left = next(iter(result.floors.values()))["all_latents_and_error"]
    rows = [(curve.name, *(_shown(curve, n) for n in _COUNTS)) for curve in result.main()]
    likely = [(curve.name, *(_shown(curve, n, field="probability") for n in _COUNTS)) for curve in result.main()]
    return (
        f"<h3>{escape(result.site)}: pairs in which {escape(_KINDS.get(result.corruption, result.corruption))}</h3>"
        f'<p class="own">{escape(_upper(result.own.sentence()))}.</p>'
        f"<p>Patched at <b>{escape(result.site)}</b>, {escape(where)}; features chosen on {result.n_selection} other "
        f"prompts ({escape(result.curves[0].selection or 'as told')}), curve measured on {result.n_test}.{shared} "
        "KL(clean ‖ patched) in nats after so many features, with 95% intervals:</p>"
        + table(("KL after so many features", *map(str, _COUNTS)), rows)
        + "<p>Probability of the clean prompts' answer:</p>"
        + table(("probability after so many features", *map(str, _COUNTS)), likely)
        + "".join(f"<p><b>{escape(_upper(text))}.</b></p>" for text in result.sentences())
        + '<p class="note">Intervals: bootstrap over templates, then prompts; dictionary and baseline are compared '
        "prompt by prompt, and called better or worse where the interval of the difference leaves zero out. "
        "Equal edit size: the largest sets whose mean edit is no larger. Dotted lines: every latent patched; "
        f"with the error term patched too {abs(left):.6f} is left. "
        "A site that is not given is the one at which the features do best on the selection prompts.</p>"
        + plot(ioi_figure(result, labels))
        + _selections(result)
    )


def _selections(result: IOIResult) -> str:
    """The ways to choose features side by side, with what they cost."""
    curves = [curve for curve in result.curves if curve.name in result.floors]
    if len({curve.selection for curve in curves}) < 2:
        return ""
    counts = _COUNTS[1:]
    rows = [
        (f"{curve.name}, {curve.selection}", f"{curve.forwards:,}", *(_shown(curve, n, at_most=True) for n in counts))
        for curve in curves
    ]
    return (
        "<p>Ways to choose the features. Greedy search measures every candidate; attribution estimates all from one "
        "gradient; threshold pruning is the source's: from all features down, dropping what costs less than τ. "
        "Cost: prompts run.</p>"
        + table(("chosen by", "cost", *(f"KL at {n}" for n in counts)), rows)
        + '<p class="note">Threshold pruning proposes sets of its own sizes; shown is its largest set of no more '
        "features than that, with its size.</p>" + plot(selection_figure(result))
    )


def _shown(curve: Curve, n: int, *, field: str = "kl", at_most: bool = False) -> str:
    """A number after `n` features, with its interval; `at_most`, of the largest set of no more than `n`."""
    point = next((p for p in reversed(curve.points) if p.n_features == n or (at_most and p.n_features < n)), None)
    if point is None:
        return ""
    own = point.intervals.get(field)
    size = f" [{point.n_features}]" if point.n_features != n else ""
    return f"{getattr(point, field):.3g}" + (f"\u00a0({own[0]:.2g}\u2060–\u2060{own[1]:.2g})" if own else "") + size


def circuit_section(graph: FeatureGraph, svg: str | None) -> str:
    """The drawn circuit and its strongest edges."""
    edges = sorted(graph.edges, key=lambda e: -abs(e.effect))[:12]
    name = {node.id: " ".join(node.responds_to) for node in graph.nodes}
    rows = [
        (
            _with(str(e.cause), name[e.cause]),
            _with(str(e.target), name[e.target]),
            f"{e.effect:+.3f} ± {e.error:.3f}",
            "–" if e.null is None else f"{e.null:.3f}",
            f"{e.n_active}/{e.n_examples}",
        )
        for e in edges
    ]
    picture = f'<div class="wide">{_inline(svg)}</div>' if svg else "<p>No Graphviz: see circuit.dot.</p>"
    how = "every feature" if graph.facts["exhaustive"] else "what a screen proposed of the features"
    how = "every other member" if graph.facts.get("among") == "members" else how
    return (
        f"<p>Target: <b>{escape(str(graph.target))}</b>. Each box is a feature, named layer_index, with the tokens "
        "on which its strongest examples peak; an arrow says how much of the target's activation is lost when "
        f"the cause alone is ablated. {graph.facts['targets_asked']} targets were asked for their causes, and {how} "
        f"below that is active on their examples was ablated: {graph.facts['pairs_run']:,} runs.</p>"
        + picture
        + "<p>The strongest edges, with standard errors over examples:</p>"
        + table(("cause", "target", "effect", "random", "active on"), rows)
        + '<p class="note">Random: 99th percentile of the effect when what the cause contributes is taken along 1,000 '
        "random directions instead of its own.</p>"
    )


def _with(name: str, words: str) -> str:
    return f"{name} ({words})" if words else name


def _inline(svg: str) -> str:
    """An SVG file as an element of a page, sized by the page."""
    start, end = svg.index("<svg"), svg.index(">", svg.index("<svg"))
    return re.sub(r'\s(width|height)="[^"]*"', "", svg[start:end]) + svg[end:]


def removal_section(result: RemovalResult) -> str:
    """Capability left and damage done, per method, per layer and over all layers."""
    yes, no = result.answers
    used = next(m for m in result.methods if m.method == Method.FEATURES)
    methods = (*([result.unedited] if result.unedited else []), *result.methods)
    best = next((i for i, m in enumerate(methods) if m.method == result.best), None)
    example = f"The task: after “{result.example}”, does the model prefer “{yes}” or “{no}”? " if result.example else ""
    parts = [
        f'<p class="own">{escape(_upper(result.own.sentence()))}; AUROC {result.own_auroc:.3f}.</p>',
        f"<p>{escape(example)}What to ablate was chosen on other prompts, under a budget of {result.budget:g} nats per token of "
        f"other text. At {escape(result.site)}: {escape(', '.join(used.features))}, with strength {used.strength:g}; "
        "strength 1 sets a feature to zero, more pushes it past zero, against what the dictionary missed of it.</p>",
        f'<div class="wide">{table(_removal_head(result), [_removal_row(m) for m in methods], best)}</div>',
        f"<p><b>{escape(_upper(result.sentence()))}.</b></p>",
    ]
    if result.comparisons:
        parts.append(
            "<p>Do features reach chance with less damage than LEACE causes at the same layer? "
            f"<b>{escape(result.verdict())}.</b></p>" + _comparison_table(result)
        )
    parts += [f"<p>{escape(_upper(note))}.</p>" for note in result.notes]
    parts.append(plot(removal_figure(result)) + _gone_table(result))
    if result.elsewhere:
        parts.append("<p>AUROC left, and damage in nats per token, layer by layer:</p>" + _layers_table(result))
    if result.everywhere:
        parts.append(
            "<p>Applied at all layers at once (each layer's features, at a common share of their strengths; "
            "erasers fitted from the lowest layer up, each on the model as the ones below leave it):</p>"
            + f'<div class="wide">{table(_removal_head(result), [_removal_row(m) for m in result.everywhere])}</div>'
        )
    return "".join(parts) + f'<p class="note">{escape(_REMOVAL_NOTE.format(resampled=result.resampled))}</p>'


def _removal_head(result: RemovalResult) -> tuple[str, ...]:
    transfer = " / ".join(result.unedited.transfer) if result.unedited else ""
    return (
        "method",
        "strength",
        "AUROC",
        "within sentences",
        "accuracy",
        "P(right) − P(wrong)",
        "P(both)",
        f"transfer: {transfer}" if transfer else "transfer",
        "probe: site, last layer",
        "damage (nats/token)",
        "cross-entropy",
        "edit size",
        "gone",
    )


_REMOVAL_NOTE = (
    "In brackets 95% intervals: bootstrap over {resampled}; for damage over contexts. Capability: AUROC of the "
    "difference of the two answers' logits over balanced held-out prompts; gone means within 0.05 of 0.5. Within sentences: "
    "the AUROC for somebody who knows the sentence and its sign, a little above 0.5 by chance alone. Damage: KL per token from "
    "the unedited model on held-out text, where that model gives the task's tokens less than 1%; cross-entropy: its rise there. "
    "Transfer: AUROC on other forms of the task. Probe: AUROC of a logistic regression fitted after the edit on one half of "
    "the test prompts and read on the other, which share no name (no template, where there are no names), at the edited site "
    "(of several, the last) and after the last block; neither the edit nor an eraser has seen them. Strengths of features and tuned methods were "
    "read off the selection prompts, within the budget; plain ablation has strength 1, and so have the erasers unless tuned. "
    "Random features (of like density) and random directions have the edit size of the features, at every site; of several "
    "draws the mean is given, and gone means each. Erasers are fitted on the "
    "prompts' last tokens. All methods edit the same site at the same positions, every token but BOS."
)


def _removal_row(m: Removal) -> tuple[str, ...]:
    probes = " / ".join("–" if p is None else f"{p.value:.2f}" for p in (m.probe, m.probe_last))
    draws = f" ({', '.join(f'{area:.2f}' for area in m.draws)})" if m.draws else ""
    return (
        m.method,
        f"{m.strength:.2f}",
        f"{m.auroc:.2f}{draws}",
        f"{m.within:.2f}",
        f"{m.accuracy:.2f}",
        f"{m.gap:.2f}",
        f"{m.answer_mass:.2f}",
        " / ".join(f"{area.value:.2f}" for area in m.transfer.values()) or "–",
        probes,
        f"{m.damage:.4f}",
        f"{m.rise.value:+.4f}",
        f"{m.edit_size:.2f}",
        "yes" if m.gone else "no",
    )


def _comparison_table(result: RemovalResult) -> str:
    """Features beside LEACE, site by site."""
    rows = [
        (
            c.site,
            "yes" if c.features_gone else "no",
            "yes" if c.leace_gone else "no",
            f"{c.saved:+.4f}",
        )
        for c in result.comparisons
    ]
    return table(("site", "features gone", "LEACE gone", "damage that the features save (nats/token)"), rows)


def _gone_table(result: RemovalResult) -> str:
    """What each method's damage is at the strength at which the capability goes."""
    rows = [
        (curve.method, curve.site, "never" if (found := curve.damage_when_gone()) is None else f"{found:.5f}")
        for curve in result.frontiers
    ]
    if not rows:
        return ""
    return "<p>Damage at the least strength that removes the capability, read off the curves:</p>" + table(
        ("method", "site", "nats/token"), rows
    )


def _layers_table(result: RemovalResult) -> str:
    """AUROC and damage, a row to a site and a column to a method."""
    everything = (*result.methods, *result.elsewhere)
    names = list(dict.fromkeys(m.method for m in result.elsewhere))
    cells = {(m.site, m.method): f"{m.auroc.value:.2f} / {m.damage.value:.4f}" for m in everything}
    sites = sorted({Site.parse(m.site) for m in everything})
    rows = [(str(site), *(cells.get((str(site), name), "–") for name in names)) for site in sites]
    return table(("site", *names), rows)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def plot(figure) -> str:
    """A figure as a piece of a page; the page loads plotly itself."""
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})


def write_page(path: Path, title: str, body: str, *, assets: Path | None = None) -> None:
    """Write a page; `assets` is the folder that holds (or gets) the one copy of plotly, by default the page's own."""
    assets = assets or path.parent
    script = assets / "plotly.min.js"
    if not script.is_file():
        from plotly.offline import get_plotlyjs

        write_text(script, get_plotlyjs())
    source = escape(os.path.relpath(script, path.parent))
    write_text(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<style>{_STYLE}</style><script src="{source}"></script></head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n',
    )


def demo_page(path: Path, sections: Sequence[str], minutes: float) -> None:
    """The page that `subrank demo` ends with."""
    titles = (
        ("A dictionary for every layer", "dictionaries/", _DICTIONARIES),
        ("Which features carry the indirect object", "ioi/ioi.html", _IOI),
        ("The circuit behind a closing bracket", "circuit/circuit.html", _CIRCUIT),
        ("Removing pronouns", "remove/remove.html", _REMOVAL),
    )
    parts = [
        f'<h2>{number}. {escape(title)}</h2><p class="lead">{lead}</p>{section}<p class="note">Files: <a href="{link}">{link}</a></p>'
        for number, ((title, link, lead), section) in enumerate(zip(titles, sections, strict=True), 1)
    ]
    intro = (
        '<p class="lead">A language model computes with vectors. This page takes a small one apart: it finds the '
        "features its vectors are made of, moves single features from one prompt to another, draws how features cause "
        "each other, and switches a capability off. Everything below was computed on this machine, "
        f"in {minutes:.1f} minutes, from the bundled model <code>storybook</code>: six layers of the Pythia "
        "architecture, trained on a small invented language of stories, letters, recipes, German, medicine and code.</p>"
    )
    write_page(path, "subrank: a language model, taken apart", intro + "".join(parts) + _NEXT)


_DICTIONARIES = (
    "At every layer, a sparse autoencoder learned a dictionary of 512 directions such that each activation is nearly "
    "a sum of 16 of them. All six were trained in one pass over the text. A direction with its activation is a feature."
)
_IOI = (
    "“Then, John and Mary went to the store. Mary gave a book to” → John. Two prompts that differ in one name "
    "run side by side, and features of one are patched into the other: x' = x̄ + Σ (c − c̄) f. The fewer features and the "
    "smaller the edit that carry the answer over, the better they are the units in which the model computes. Lower KL is "
    "better; the blue curve should lie below the others on the left."
)
_CIRCUIT = (
    "Starting from a last-layer feature that says “a bracket closes now”, every active feature of the layer below was "
    "ablated on examples where the target is active; the strongest causes were kept and asked in turn, down to layer 0."
)
_REMOVAL = (
    "Ablating a few features should take away the ability to choose between “she” and “he”, and little else. Beside it "
    "stand the usual ways to erase a concept. Down is removed, left is harmless."
)
_NEXT = """<h2>What to run next</h2>
<p>The same on a model and text of your own; a directory in Hugging Face layout works without any network:</p>
<pre>subrank train PATH/TO/MODEL --text my_text.jsonl --out my_dictionaries
subrank ioi my_dictionaries
subrank circuit my_dictionaries --target 3_17
subrank remove my_dictionaries --task pronouns</pre>
<p>Every command has <code>--help</code>; numbers are in each folder's <code>result.json</code>, versions, settings and
seed in <code>provenance.json</code>. The dictionaries are safetensors files that SAELens reads.</p>"""
