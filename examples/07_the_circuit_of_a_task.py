"""The circuit of a task: `python examples/07_the_circuit_of_a_task.py [SET [OUT]]`.

Which features carry logit(IO) - logit(S) in "When Mary and John ..., John gave ... to"? At most forty of the last layer
are kept, everything else there being what it is in the prompt with swapped roles. They are scored on prompts of
other names and templates, beside random circuits.
"""

import sys
from pathlib import Path

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
out = Path(sys.argv[2] if len(sys.argv) > 2 else "example_task_circuit")

light = {"contexts": 40, "held": 40, "examples": 32, "null": 0, "draws": 0, "cards": 0}
circuit = sr.discover(sr.load_model("storybook"), saes, "task: ioi", nodes=40, cover=1, **light)
print(circuit)
print(circuit.draw(out / "circuit.svg"))

# The curve is the test: how much of the task do the first n features carry alone, beside as many random ones?
circuit.plot()

assert circuit.evaluation is not None
controls = circuit.evaluation.controls[-1]  # under resampling, the ablation that chose the circuit
features = [node for node in circuit.graph.nodes if str(node.id).startswith("5_")]
assert 0 < len(features) <= 40
assert controls.circuit.ablated.value > controls.best_random.ablated.value + 0.05, (
    "the features found carry the task, random ones do not"
)
