"""presswork-mini: the small model that ships with Presswork, from its drawings to its figures."""
