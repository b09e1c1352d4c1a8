"""The kinds of an image-level label: whether an interaction is in a picture, is not, or is left out of a loss."""

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
