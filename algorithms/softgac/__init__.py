"""SoftGAC: the soft bridge policy and its control energy (arXiv 2605.08733)."""
