"""The IOI patching experiment (Cunningham et al. 2023): `study.py` tells it whole."""
