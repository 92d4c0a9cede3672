"""The command `subrank`: one module per verb; `add` declares its options, `run` does the work."""
