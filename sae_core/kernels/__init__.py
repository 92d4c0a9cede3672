"""Kernels for one GPU in Triton (`fused.py`), the same in plain PyTorch (`plain.py`), and which a device has."""
