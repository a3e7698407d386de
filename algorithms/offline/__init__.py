"""Rivals that learn values from recorded episodes and then from gathered ones: IQL, TD3+BC, CQL, Cal-QL, RLPD."""
