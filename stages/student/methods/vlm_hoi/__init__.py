"""VLM-HOI: MUREN on whole pictures, taught by cached image-text matching scores."""
