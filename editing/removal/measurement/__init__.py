"""What a removal did: capability left and damage done, along the strength of an edit, beside other methods."""
