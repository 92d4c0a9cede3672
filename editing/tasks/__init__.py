"""Prompts with a right and a wrong answer: IOI, pronouns, possessives, brackets, a user's own pairs."""
