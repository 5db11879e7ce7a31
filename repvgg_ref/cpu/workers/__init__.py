"""Threads, and processes that share memory."""
