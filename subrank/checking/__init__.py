"""`--check`: a sample of what a verb reports, computed again in the plainest way."""
