"""Looks at AWS, with the credentials that the service would use."""
