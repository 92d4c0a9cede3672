"""Ground floor: the language model and its sites, activations, dictionaries, training, measuring, storage."""
