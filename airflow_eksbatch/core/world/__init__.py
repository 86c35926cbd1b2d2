"""The world: all live nouns and their indexes."""
