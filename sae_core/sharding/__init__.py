"""One dictionary on many processes: who has which latents and tokens, and what they exchange."""
