"""Evaluation room: detections in, average precision and a report out. Imports no teacher, no torch, no cache."""
