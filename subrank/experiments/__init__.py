"""Each verb as a function that returns a result: what `import subrank as sr` offers and the command calls."""
