"""SAC with SoftGAC's critics: the control."""
