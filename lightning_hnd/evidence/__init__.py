"""What is above chance: evidence gathered beside the metric, and fresh weights to compare with."""
