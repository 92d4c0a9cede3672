"""Training: the loop, the objective of each kind of dictionary, and a whole run as one value."""
