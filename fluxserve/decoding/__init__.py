"""Decoding of uploads in a process that can be killed. Knows no HTTP and no model."""
