"""The circuit behind a closing bracket: `python examples/03_draw_a_circuit.py [SET [OUT]]`.

The target is the feature of the last layer that best predicts "a closing bracket comes next". On its strongest examples
every active feature of the layer before is ablated, alone; the three that take most of the target are its causes. The
same is then asked of the causes.
"""

import sys
from pathlib import Path

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
out = Path(sys.argv[2] if len(sys.argv) > 2 else "example_circuit")

# What is left out takes longer: more than two targets, scores on other prompts (`held`), and the explorer (`cards`).
light = {"contexts": 150, "max_targets": 2, "null": 100, "held": 0, "cards": 0}
circuit = sr.discover(sr.load_model("storybook"), saes, **light)

# An edge says which share of the target's activation goes when the cause is ablated.
for edge in circuit.graph.edges:
    print(f"{edge.cause} -> {edge.target}: ablating the cause takes {edge.effect:+.0%} of the target")

# The darker an arrow, the stronger; red ones hold the target down.
print(circuit.draw(out / "circuit.svg"))

# The same in at most eight boxes, features of one label and layer together, with an example below.
print(circuit.draw_story(out / "story.svg"))

assert circuit.graph.edges and all(edge.cause.site.layer == edge.target.site.layer - 1 for edge in circuit.graph.edges)
assert "<svg" in (out / "circuit.svg").read_text()
