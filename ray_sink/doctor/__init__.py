"""What an installation can promise, found by trying it: one module for each place that is looked at."""
