"""What the sink costs, held against the limits of the machine and against what is done without it."""
