"""The dashboard: pages for people. Their numbers come from the core's queries."""
