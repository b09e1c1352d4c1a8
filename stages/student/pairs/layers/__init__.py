"""Building blocks that students of several methods are made of."""
