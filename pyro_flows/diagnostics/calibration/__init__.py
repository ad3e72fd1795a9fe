"""Whether a fit recovers what a model's own simulations were drawn from."""
