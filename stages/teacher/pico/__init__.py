"""The pico BLIP teacher: real BLIP classes with a convolutional stem, trained on captions of the pico world."""
