"""What features respond to, in words: `python examples/16_explain.py [SET]`.

An explanation is worth what it predicts: activations are simulated from the words alone, on text that the explanation
was not made on, and compared with the true ones (Bills et al. 2023; Cunningham et al. 2023). Random directions and
explanations of other features stand beside.
"""

import sys

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
model = sr.load_model("storybook")

# Here rules explain, which need no network: n-grams of tokens. `llm="http://127.0.0.1:8000/v1"` asks a language model.
result = sr.explain(model, saes, site="resid_post.4", features=4, contexts=100, beside="random_basis")
print(result)

# A row for each explanation: the correlation, and the words. Whole rules have all their n-grams, not the first six.
correlations: dict[str, list[float]] = {}
for row in result.rows:
    print(f"{row.method:33s} {row.feature!s:7s} {row.scores.top_and_random:5.2f}  {row.text[:48]}")
    correlations.setdefault(row.method, []).append(row.scores.top_and_random)

# The mean over features with its interval. Words that belong to another feature are worth nothing.
result.plot()

ours, others = (sum(correlations[name]) for name in ("dictionary", "dictionary, others' explanations"))
assert ours > others
