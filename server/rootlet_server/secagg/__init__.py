"""Secure aggregation on the server: it carries messages between devices and learns a sum."""
