"""Annotations of other programs, one reader each, and the project's own form that they become."""
