"""Activations simulated from an explanation alone, and the fragments of text on which that is done."""
