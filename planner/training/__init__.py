"""A plan carried out to its end: a trained network, and what it says of images."""
