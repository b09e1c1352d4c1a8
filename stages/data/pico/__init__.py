"""The pico world: small drawn scenes of people and objects, deterministic by seed, in HICO-DET's on-disk layout."""
