"""What is removed: prompts of two classes that the next token tells apart, and how well a model tells them apart."""
