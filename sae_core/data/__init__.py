"""From text to activations: contexts of tokens, streams of mixed activations, and their cache on disk."""
