"""GAC: a latent-plan model of trajectories and returns, trained by its ELBO; acting is inference on it."""
