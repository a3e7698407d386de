"""The generative policies that SoftGAC is compared with, on its critics: FLAC, FlowRL, QSM, QVPO and DIME."""
