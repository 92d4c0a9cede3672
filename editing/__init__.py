"""First floor: interventions, the tasks they act on, and the experiments made of both."""
