"""Servers that one would pick instead of dermserve: set up as their documentation recommends, measured side by side."""
