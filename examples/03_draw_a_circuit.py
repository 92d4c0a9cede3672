"""The circuit behind a closing bracket: `python examples/03_draw_a_circuit.py [SET [OUT]]`."""

import sys
from pathlib import Path

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
out = Path(sys.argv[2] if len(sys.argv) > 2 else "example_circuit")

light = {"contexts": 150, "max_targets": 2, "null": 100, "held": 0, "cards": 0}  # not scored, and no explorer
circuit = sr.discover(sr.load_model("storybook"), saes, **light)
for edge in circuit.graph.edges:
    print(f"{edge.cause} -> {edge.target}: ablating the cause takes {edge.effect:+.0%} of the target")
print(circuit.draw(out / "circuit.svg"))

assert circuit.graph.edges and all(edge.cause.site.layer == edge.target.site.layer - 1 for edge in circuit.graph.edges)
assert "<svg" in (out / "circuit.svg").read_text()
