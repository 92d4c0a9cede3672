"""The features of one prompt: what is active where, what it does to the next token, where a circuit's nodes act."""
