"""What is explained of features, by what, and what the explanations are worth."""
