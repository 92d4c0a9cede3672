"""The language model: logits, recorded activations, edited runs, generation; its blocks taken apart."""
