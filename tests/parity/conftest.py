"""What here is no test: how the fixtures are made, with libraries that the tests do without."""

collect_ignore_glob = ["full_size/*", "full_size_weights.py", "keras_twin.py", "twins/*"]
