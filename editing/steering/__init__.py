"""Text with features turned up, down or off, and what each strength does."""
