"""Guides: the flow over all latents, and where it starts."""
