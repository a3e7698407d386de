"""Baselines that learn from the same datasets: behaviour cloning, of the best episodes only, and a decision transformer."""
