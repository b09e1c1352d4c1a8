"""The pair classifier: the project's plain student, detected boxes in pairs, and the soft labels that it learns from."""
