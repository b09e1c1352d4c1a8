"""The crowd's own models: a tower that knows no interaction, and how it was trained."""
