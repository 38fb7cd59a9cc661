"""What the suite times of the package; each module is a process of its own and prints JSON."""
