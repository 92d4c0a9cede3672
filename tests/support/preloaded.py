"""What processes that train import, so that those that begin as copies of one that has it need not."""

import torch._dynamo  # the first optimiser of a process does
from trained import EVERY

__all__ = ["EVERY", "torch"]
