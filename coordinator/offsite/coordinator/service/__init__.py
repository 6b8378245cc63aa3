"""The gRPC edge of the coordinator: one port, mutual TLS, one check for every call."""
