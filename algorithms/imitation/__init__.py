"""Baselines on the same datasets: behaviour cloning, of the best episodes only, return-conditioned regression, a decision transformer."""
