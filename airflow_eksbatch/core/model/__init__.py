"""The nouns of AWS Batch and their own rules."""
