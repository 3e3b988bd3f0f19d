"""The ground floor: what every room of dermserve shares, and nothing that needs torch, a web framework or a database."""

__version__ = "0.1.0"
