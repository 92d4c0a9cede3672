"""In which precision a language model computes; dictionaries are float32."""

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""`auto`: on CUDA as the checkpoint says, elsewhere float32, since processors without such instructions take 8 times as
long in half precision."""
Kept = Literal["bfloat16", "float32"]
"""In which precision activations lie on disk."""
