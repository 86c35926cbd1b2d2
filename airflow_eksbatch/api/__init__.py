"""Speaks the AWS Batch wire API, and what we add to it."""
