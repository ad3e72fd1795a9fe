"""The fit: its options, its loop, and what it returns."""
