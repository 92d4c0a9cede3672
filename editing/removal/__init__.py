"""Removing a capability by ablating features, beside LEACE: `experiment.py` tells it whole."""
