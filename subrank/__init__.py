"""Find the features a language model computes with, edit them one at a time, draw the circuits they form."""

__version__ = "0.1.0"
