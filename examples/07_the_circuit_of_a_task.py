"""The circuit of a task: `python examples/07_the_circuit_of_a_task.py [SET [OUT]]`.

Which features carry logit(IO) - logit(S) in "When Mary and John ..., John gave ... to"? At most forty of the last layer
are kept, everything else there being what it is in the prompt with swapped roles, and scored on other prompts.
"""

import sys
from dataclasses import replace
from pathlib import Path

from circuits.discovery.assembly import assemble
from circuits.discovery.edges import EdgeConfig
from circuits.discovery.member_edges import edges_among
from circuits.discovery.prompts import PromptSource, from_task
from circuits.discovery.pruning import prune_at
from circuits.discovery.target_causes import CauseSearch, DiscoveryConfig
from circuits.drawing import draw
from circuits.features.atlas import survey
from circuits.scoring.ablations import ResampleAblation
from circuits.scoring.circuit_runs import CircuitRuns, Errors, by_site
from circuits.scoring.faithfulness import Scale
from editing.tasks.ioi import Corruption, IOITask
from sae_core.model.language_model import load_model
from sae_core.sites import Site
from sae_core.storage import load_set

found = load_set(Path(sys.argv[1] if len(sys.argv) > 1 else "example_set"))
out = Path(sys.argv[2] if len(sys.argv) > 2 else "example_task_circuit")
model, own = load_model("storybook"), found.dictionaries
contexts = found.text.contexts(model)[:40]

task = IOITask.of(model)
task = replace(task, names={split: ["Mary", "John", "Tom"] for split in task.names})
chosen_on, scored_on = (task.pairs(model, Corruption.SWAP, split, 32, seed=0) for split in ("selection", "test"))
prompts = from_task(model, chosen_on)
config = DiscoveryConfig(EdgeConfig(n_null=0, errors=False), 16, min_examples=8)
search = CauseSearch(model, own, PromptSource(model, own, prompts.examples), config)
circuit = prune_at(search, prompts, contexts, 40, cover=1)
steps = list(edges_among(search, by_site(circuit), prompts.target, prompts.examples))
graph = assemble(search, survey(model, own, contexts), prompts.target.node, steps, {"ablation": "zero"}, circuit)
print(*draw(graph, out).paths, sep="\n")

prompts = from_task(model, scored_on)
covered = {Site(5): own[Site(5)]}
ablation = ResampleAblation.paired(model, covered, prompts.examples, scored_on.corrupted)
runs = CircuitRuns(model, covered, prompts.target, prompts.examples, ablation)
scale, shares = Scale(runs), {}
for name, members in (("circuit", by_site(circuit)), ("all latents", runs.everything())):
    shares[name] = scale.share(runs.values([members], Errors.ABLATED)[0])
    print(f"faithfulness on other prompts, errors ablated, {name}: {shares[name]}")
assert len(circuit) <= 40 and shares["circuit"].value > 0.5 * shares["all latents"].value
assert (out / "circuit.dot").is_file()
