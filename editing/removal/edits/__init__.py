"""Edits that remove a capability: ablated features, erasers and random edits, each fitted and chosen alike."""
