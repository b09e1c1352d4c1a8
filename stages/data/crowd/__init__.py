"""The crowd: drawn scenes of many people and equal things, where only a relation tells who does what with which."""
