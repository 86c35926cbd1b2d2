"""Looks at Kubernetes clusters, through the connection that the service would use."""
