"""What dictionaries are worth by themselves: reconstruction, density, similarity to each other."""
