"""Datasets in: annotations, vocabularies, pictures and the built-in pico world."""
