"""What each verb may be told: one frozen dataclass per verb, read by the function and by the command alike.

A field's docstring is its help. Nothing here loads torch.
"""
