"""Published experiments, repeated with controls beside every number: one module per study, which tells it."""
