"""VLM-HOI: MUREN on whole images, distilled from cached image-text matching scores."""
