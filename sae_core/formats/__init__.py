"""Other people's files: their layouts, tensors, hook names and scalings."""
