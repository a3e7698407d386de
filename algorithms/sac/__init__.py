"""The tanh-Gaussian with SoftGAC's critics: CrossQ-SAC, the paper's control, and SAC, a lighter one of ours."""
