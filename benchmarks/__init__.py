"""Measurements that anyone can repeat; each module says what to expect."""
