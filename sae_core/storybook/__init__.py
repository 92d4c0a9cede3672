"""The bundled model: its grammar, its words, how it was trained, and what is true of each token."""
