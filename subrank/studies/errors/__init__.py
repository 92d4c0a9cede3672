"""What dictionaries leave out."""
