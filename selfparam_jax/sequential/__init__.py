"""Documents one after another: replay, orthogonality, ledger."""
