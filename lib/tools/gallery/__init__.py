"""A page that shows which queries failed and how."""
