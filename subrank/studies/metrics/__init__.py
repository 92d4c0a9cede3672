"""What is measured of dictionaries besides their reconstruction."""
