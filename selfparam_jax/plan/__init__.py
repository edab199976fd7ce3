"""Whether a job fits a machine, and how long a step would take, without the machine."""
