"""The dashboard: shows what the service knows, server-rendered, without a build step."""
