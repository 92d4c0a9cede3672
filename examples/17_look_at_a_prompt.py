"""Look at the features of one prompt: `python examples/17_look_at_a_prompt.py [SET]`.

Which features are active at which token, and which of them make the model write what it writes? Each has an effect on
the next token: straight through the last norm, to first order along all paths, and, for the largest, exactly, by
ablating it at that token alone, beside steps of the same length along random directions.
"""

import sys

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
model = sr.load_model("storybook")

# What the model expects comes first. `circuit="dictionaries/circuit"` shows a circuit where it acts on the prompt, and
# `result.save("prompt")` writes the page: sites by tokens; a click on a cell or a token shows what is active there.
result = sr.prompt(model, saes, "print ( sqrt ( x")
print(result)

# Everything on the page is a value: the most active features of the last site, token by token.
view = result.features
for cell in view.cells[-len(view.tokens) + 1 :]:
    token, strongest = view.tokens[cell.position], cell.features[0]
    print(f"{token.text!r}: {strongest.feature} {strongest.activation:.1f}, {cell.error:.0%} not in the dictionary")

cell, ablated = view.exact()[0]
print(f"without {ablated.feature} the {view.readout} falls by {ablated.exact:.2f}")
assert ablated.exact > ablated.control, "by more than for random directions"
