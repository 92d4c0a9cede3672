"""From a target to its circuit: `recursive.py` finds causes of causes, `pruning.py` the features that suffice."""
