"""Attribution methods, one generator a file, that asks questions and is driven by somebody else."""
