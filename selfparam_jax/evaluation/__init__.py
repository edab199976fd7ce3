"""Questions and their answers, metrics, drift, likelihoods, and the protocol of a system."""
