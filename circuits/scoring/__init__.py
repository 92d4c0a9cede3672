"""How much of a target a circuit carries, beside control circuits."""
