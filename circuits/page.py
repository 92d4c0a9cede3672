"""Results as pages that open from disk: one HTML file each, one shared copy of plotly beside them."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from circuits.graph import FeatureGraph
from editing.figures import ioi_figure, removal_figure
from editing.ioi import IOIResult
from editing.removal import RemovalResult
from editing.splice import SpliceCost
from sae_core.files import write_text
from sae_core.measures import Quality, finite
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


@dataclass(frozen=True)
class Measured:
    """What the dictionaries of a set are worth on held-out text; every result opens with it."""

    quality: dict[Site, Quality]
    cost: dict[Site, SpliceCost]

    def to_json(self) -> dict[str, dict[str, float]]:
        """FVU, L0, dead share and the cross-entropies, per site."""
        return {
            str(site): asdict(own)
            | {"loss_recovered": finite(self.cost[site].recovered)}
            | {f"loss_{name}": value for name, value in asdict(self.cost[site]).items()}
            for site, own in self.quality.items()
        }

    @classmethod
    def from_json(cls, value: dict[str, dict[str, float]]) -> "Measured":
        quality, cost = {}, {}
        for name, row in value.items():
            site = Site.parse(name)
            quality[site] = Quality(row["fvu"], row["l0"], row["dead"], int(row["n_tokens"]))
            cost[site] = SpliceCost(row["loss_original"], row["loss_spliced"], row["loss_zeroed"])
        return cls(quality, cost)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], best: int | None = None) -> str:
    """An HTML table of texts, escaped; row number `best` is highlighted."""
    body = "".join(
        f"<tr{' class=best' if i == best else ''}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for i, row in enumerate(rows)
    )
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{body}</table>"


def dictionaries_section(measured: Measured) -> str:
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


def ioi_section(results: Sequence[IOIResult]) -> str:
    """The patching curves with what to read from them."""
    parts = []
    for result in results:
        shown = [
            (c.name, *(f"{p.kl:.3f}" for n in _COUNTS for p in c.points if p.n_features == n)) for c in result.curves
        ]
        shared = f" Selection and test share their {' and '.join(result.shared)}." if result.shared else ""
        kind = {"io": "only the indirect object differs", "swap": "the two names swap roles"}[result.corruption]
        parts.append(
            f"<h3>Pairs in which {kind}</h3>"
            f'<p class="own">{escape(_upper(result.own.sentence()))}.</p>'
            f"<p>Patched at <b>{escape(result.site)}</b>; features chosen on {result.n_selection} other prompts, "
            f"curve measured on {result.n_test}.{shared} KL(clean ‖ patched) in nats after so many features:</p>"
            + table(("after so many features", *map(str, _COUNTS)), shown)
            + f'<p class="note">With every latent patched the dictionary leaves {result.floor["all_latents"]:.3f} nats '
            f"(the dotted line): that is what its error term carries. With the error term patched too: "
            f"{abs(result.floor['all_latents_and_error']):.6f}. The site is the one at which the dictionary's features do best on "
            "the selection prompts. PCA and the other complete bases reach 0 when all their directions are patched.</p>"
            + plot(ioi_figure(result))
        )
    return "".join(parts)


_COUNTS = (0, 1, 4, 8, 16, 32, 64)


def circuit_section(graph: FeatureGraph, svg: str | None) -> str:
    """The drawn circuit and its strongest edges."""
    edges = sorted(graph.edges, key=lambda e: -abs(e.effect))[:12]
    label = {node.feature: " ".join(node.responds_to) for node in graph.nodes}
    rows = [
        (
            f"{e.cause} ({label[e.cause]})",
            f"{e.target} ({label[e.target]})",
            f"{e.effect:+.3f}",
            f"{e.n_active}/{e.n_examples}",
        )
        for e in edges
    ]
    picture = f'<div class="wide">{_inline(svg)}</div>' if svg else "<p>No Graphviz: see circuit.dot.</p>"
    return (
        f"<p>Target: <b>{escape(str(graph.target))}</b>. Each box is a feature, named layer_index, with the tokens "
        "on which its strongest examples peak; an arrow says how much of the target's activation is lost when "
        f"the cause alone is ablated. {graph.facts['targets_asked']} features were asked for their causes, every "
        f"feature of the layer before that is active on their strongest examples was ablated: {graph.facts['pairs_run']:,} runs.</p>"
        + picture
        + "<p>The strongest edges:</p>"
        + table(("cause", "target", "effect", "active on"), rows)
    )


def _inline(svg: str) -> str:
    """An SVG file as an element of a page, sized by the page."""
    start, end = svg.index("<svg"), svg.index(">", svg.index("<svg"))
    return re.sub(r'\s(width|height)="[^"]*"', "", svg[start:end]) + svg[end:]


def removal_section(result: RemovalResult) -> str:
    """Capability left and damage done, per method."""
    rows = [
        (
            m.method,
            f"{m.strength:.2f}",
            f"{m.auroc:.3f}",
            f"{m.within:.2f}",
            f"{m.pronoun_mass:.2f}",
            f"{m.accuracy:.3f}",
            f"{m.damage:.4f}",
            f"{m.edit_size:.2f}",
            "yes" if m.gone else "no",
        )
        for m in result.methods
    ]
    best = next((i for i, m in enumerate(result.methods) if m.method == result.best), None)
    used = next(m for m in result.methods if m.method == "features")
    return (
        f'<p class="own">{escape(_upper(result.own.sentence()))}; AUROC {result.own_auroc:.3f}.</p>'
        "<p>The task: after “Lily lived in Paris. Lily was tired because”, does the model prefer “she” to “he”? "
        f"What to ablate was chosen on prompts with other names and other combinations of sentences. At {escape(result.site)}: "
        f"{escape(', '.join(used.features))}, with strength {used.strength:g}; strength 1 sets a feature to zero, more "
        "pushes it past zero, against what the dictionary missed of it.</p>"
        + table(
            (
                "method",
                "strength",
                "AUROC",
                "within sentences",
                "P(she)+P(he)",
                "accuracy",
                "damage (nats/token)",
                "edit size",
                "gone",
            ),
            rows,
            best,
        )
        + f"<p><b>{escape(_upper(result.sentence()))}.</b></p>"
        '<p class="note">Capability: AUROC of logit(she) − logit(he) over balanced held-out prompts; gone means within '
        "0.05 of 0.5. Strengths were read off the selection prompts: plain ablation has strength 1, and so have LEACE and "
        "mean difference unless tuned. Damage: KL per token from the unedited model on held-out text, where that model gives pronouns "
        "less than 1%. Within sentences: the AUROC for somebody who knows the sentence, a little above 0.5 by chance alone. All methods edit the same site at the same positions. Faint points: the other sites.</p>"
        + plot(removal_figure(result))
    )


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
