"""SAC with SoftGAC's critics: a control of ours, not the paper's."""
