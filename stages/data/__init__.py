"""Datasets in: annotations, vocabularies, images and the built-in pico world."""
