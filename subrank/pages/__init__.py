"""The pages that people open: reports and the explorer. Pages know numbers, numbers never know pages."""
