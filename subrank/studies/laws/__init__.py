"""Laws of scaling, fitted and drawn."""
