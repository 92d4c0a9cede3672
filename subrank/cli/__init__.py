"""The verbs of the command `subrank`, one module each: `add` declares its options, `run` does the work.

Nothing heavy is imported before a verb runs.
"""

__version__ = "0.1.0"
