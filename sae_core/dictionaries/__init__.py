"""What a dictionary is: sparse autoencoders, their sparse arithmetic, and baselines that need no training."""
