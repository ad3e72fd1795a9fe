"""The guide for models whose plates hold latents, and its parts."""
