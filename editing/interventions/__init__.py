"""Pure functions of an activation at a site (patch, ablate, erase, steer), and how they combine and are saved."""
