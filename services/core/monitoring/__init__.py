"""The state of the whole installation in figures, and what is made of them: a dashboard and alerts."""
