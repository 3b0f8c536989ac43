"""What programs count of themselves: one list of metrics, the process's registry, and the port that shows them."""
