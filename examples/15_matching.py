"""Which features of one layer the next has too: `python examples/15_matching.py [SET]`.

Directions can be compared within one space only. Activations can be compared wherever two dictionaries have read the
same text: those of other seeds, of other layers, and of other models. Here a set is compared with itself.
"""

import sys

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")

result = sr.matching({"ours": saes}, contexts=16)
print(result)

# The share of features that have a partner which is active where they are, for every two layers.
result.plot()

# Neighbours share more than the first and the last layer, and more than texts that do not belong together.
share = {(match.site.layer, match.other.layer): match for match in result.matches}
near, far, chance = share[3, 4].matched, share[0, 5].matched, share[3, 4].matched_by_chance
print(f"layer 3 in 4: {near.value:.0%} (by chance {chance.value:.0%}); 0 in 5: {far.value:.0%}")
assert near.low > chance.high and near.value > far.value
