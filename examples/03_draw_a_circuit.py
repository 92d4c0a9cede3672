"""The circuit behind a closing bracket: `python examples/03_draw_a_circuit.py [SET [OUT]]`."""

import sys
from pathlib import Path

from circuits.discovery.assembly import assemble
from circuits.discovery.default_target import CLOSING_BRACKETS, default_target
from circuits.discovery.recursive import discover
from circuits.discovery.target_causes import CauseSearch, DiscoveryConfig
from circuits.drawing import draw
from circuits.features.atlas import survey
from sae_core.model.language_model import load_model
from sae_core.storage import load_set

found = load_set(Path(sys.argv[1] if len(sys.argv) > 1 else "example_set"))
out = Path(sys.argv[2] if len(sys.argv) > 2 else "example_circuit")
model = load_model("storybook")

atlas = survey(model, found.dictionaries, found.text.contexts(model)[:100])
target = default_target(model, found.dictionaries, atlas, CLOSING_BRACKETS)
search = CauseSearch(model, found.dictionaries, atlas, DiscoveryConfig(max_targets=2))
steps = list(discover(search, search.feature(target)))
graph = assemble(search, atlas, target, steps, {"ablation": "zero"})
for edge in graph.edges:
    print(
        f"{edge.cause} -> {edge.target}: ablating the cause takes {edge.effect:+.0%} ± {edge.error:.0%} of the target"
    )
print(*draw(graph, out).paths, sep="\n")
assert graph.edges and all(edge.cause.site.layer == edge.target.site.layer - 1 for edge in graph.edges)
assert (out / "circuit.dot").is_file()
