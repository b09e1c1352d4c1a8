"""The kinds of an image-level label: whether an interaction is in an image, is not, or is left out of a loss."""

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
