"""Which features of two dictionaries belong together."""
