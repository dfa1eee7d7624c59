"""Watch a run and steer it from a notebook."""
