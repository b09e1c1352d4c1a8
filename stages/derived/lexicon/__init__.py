"""Sentences of a teacher read by a closed vocabulary: words, synonyms, grammar, and alignment by text embeddings."""
