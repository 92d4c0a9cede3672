"""A circuit as a story: at most eight boxes, what they do to one another, and one example with its tokens shaded.

Boxes are groups of nodes and arrows sums of effects (`circuits/groups.py`). Below them stands an example of the target,
a row to a box and a column to a token, and a caption: what the picture leaves out, and how good the circuit is.
"""

import html
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import graphviz

from circuits.drawing import CAPTION, GRAPH, GREY, NODE, arrow, clipped, literal, node_look, shown
from circuits.graph import ErrorTerm, FeatureGraph, Node, NodeId
from circuits.groups import Group, Story, story_of
from circuits.shown_prompt import Prompt

LETTERS = 72
"""Of the example, up to where the target is read."""
_WIDE = 34
_SHADE = (0xF2, 0x8C, 0x1E)


def story_source(graph: FeatureGraph, prompt: Prompt | None = None, quality: Sequence[str] = ()) -> str:
    """The story in Graphviz's DOT language, input at the bottom.

    `prompt` is the example that it shows, `quality` the last lines of its caption (`circuits/quality_strip.py`).
    """
    story, nodes = story_of(graph), {node.id: node for node in graph.nodes}
    names = {group: f"box {number}" for number, group in enumerate(story.groups)}
    dot = graphviz.Digraph("story", graph_attr=GRAPH, node_attr=NODE, edge_attr={"arrowsize": "0.8"})
    for group, name in names.items():
        look = node_look(group.nodes[0], graph.target) | {"shape": "box", "tooltip": literal(_members(group))}
        dot.node(name, label=_box(group, nodes), **look)
    strongest = max((abs(edge.effect) for edge in story.edges), default=1.0) or 1.0
    for edge in story.edges:
        summed = f" ({edge.n_edges})" * (edge.n_edges > 1)
        look = arrow(edge.effect, strongest, style="" if edge.solid else "dashed")
        look |= {"label": look["label"] + summed, "tooltip": literal(shown(f"{edge.cause.name} to {edge.target.name}"))}
        dot.edge(names[edge.cause], names[edge.target], **look)
    parts = [] if prompt is None else [_grey(""), _table(_example(story, prompt))]
    caption = (*_caption(story, graph, prompt), *quality)
    lines = [line for text in caption for line in textwrap.wrap(shown(text), CAPTION)]
    parts += [_grey(html.escape(line)) for line in ["", *lines]]
    dot.attr(label=f"<{_table([[_cell(part)] for part in parts])}>", labelloc="b")
    return dot.source


def _box(group: Group, nodes: Mapping[NodeId, Node]) -> str:
    """Its label in bold, what comes next for most of its members, and these.

    Lines begin at the left: a browser's font is narrower than the one that they were measured in.
    """
    outputs = Counter(re.sub(r" \d+/\d+$", "", label.output) for id in group.nodes if (label := nodes[id].label))
    output, n_alike = outputs.most_common(1)[0] if outputs else ("", 0)
    lines = [f"<b>{html.escape(line)}</b>" for line in textwrap.wrap(shown(group.label), _WIDE, max_lines=2)]
    lines += [html.escape(clipped(output, _WIDE))] * (2 * n_alike > len(group.nodes) and bool(output))
    lines += [_grey(f"{len(group.nodes)} in {group.where}")] * (len(group.nodes) > 1)
    if not isinstance(group.nodes[0], ErrorTerm) and _members(group) != group.label:
        lines.append(_grey(html.escape(textwrap.shorten(_members(group), _WIDE, placeholder=" …"))))
    return "<" + "".join(f'{line}<br align="left"/>' for line in lines) + ">"


def _members(group: Group) -> str:
    return shown(", ".join(map(str, group.nodes)))


# ---- the example -----------------------------------------------------------------------------------


def _example(story: Story, prompt: Prompt) -> Iterator[list[str]]:
    """The rows of a table: the tokens, shaded by the target's activation, and below them a row to each other box.

    A box's shade at a token is the sum of its members' activations over the largest sum in its row.
    """
    start = next((i for i in range(len(prompt.tokens)) if sum(map(len, prompt.tokens[i:])) <= LETTERS), -1)
    tokens = prompt.tokens[start:]
    for group in story.groups:
        read = [prompt.activations[node][start:] for node in group.nodes if node in prompt.activations]
        sums = [sum(values) for values in zip(*read, strict=True)]
        if group is story.groups[0]:
            after = [_cell(_grey(_token(token), 12)) for token in prompt.after]
            shades = sums or [0.0] * len(tokens)
            yield [_name(group), *_shaded(shades, tokens), *after]
        elif read:
            yield [_name(group), *_shaded(sums, [""] * len(tokens))]


def _shaded(values: Sequence[float], texts: Iterable[str]) -> Iterator[str]:
    """Cells, the darker the larger the value, white for zero."""
    most = max(values) or 1.0
    for value, text in zip(values, texts, strict=True):
        share = max(0.0, value) / most
        colour = "#" + "".join(f"{round(255 - (255 - part) * share):02x}" for part in _SHADE)
        yield _cell(_token(text), f'bgcolor="{colour}"')


def _token(text: str) -> str:
    """A token in an HTML-like label, its spaces kept."""
    return html.escape(shown(text.replace("\n", "↵"))).replace(" ", "&#160;")


def _name(group: Group) -> str:
    """The head of its row."""
    return _cell(_grey(_token(clipped(group.label, _WIDE) + f" ({group.where})" * bool(group.where))))


def _grey(content: str, size: int = 10) -> str:
    return f'<font point-size="{size}" color="{GREY}">{content or "&#160;"}</font>'


def _cell(content: str, look: str = "") -> str:
    return f'<td align="left" {look}>{content}</td>'


def _table(rows: Iterable[Iterable[str]]) -> str:
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<table border="0" cellborder="0" cellspacing="0" cellpadding="1">{lines}</table>'


# ---- the caption -----------------------------------------------------------------------------------


def _caption(story: Story, graph: FeatureGraph, prompt: Prompt | None) -> Iterator[str]:
    """What boxes, arrows and shades are, and what is not shown."""
    yield (
        "Box: the circuit's features of one label in one layer or neighbouring ones; yellow: the target. Arrow: the "
        "effects of the edges from box to box, summed (how many), each the share of its target's activation that is "
        "lost when the cause alone is ablated; blue supports, red inhibits, dashed is like random directions."
    )
    if prompt:
        yield "Shade: how active a box's features are on a token of this example, against the most in the row."
    n_shown, n_left = (sum(len(group.nodes) for group in groups) for groups in (story.groups, story.left_out))
    left = f"Shown: {n_shown} of {len(graph.nodes)} nodes, with {story.influence:.0%} of the influence on the target"
    left += f"; not shown: {len(story.left_out)} weaker boxes with the other {n_left}" * (n_left > 0)
    yield left + f"; {story.n_within} effects within boxes" * (story.n_within > 0) + "."
