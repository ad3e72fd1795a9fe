"""Posteriors with reference draws: sixteen of posteriordb's, a funnel and a banana."""
