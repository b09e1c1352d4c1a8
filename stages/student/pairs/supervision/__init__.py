"""Supervision terms that any network of pairs can take."""
