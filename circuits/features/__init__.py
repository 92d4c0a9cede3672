"""What features respond to and do: examples, statistics, labels, cards."""
