"""Room of dermserve; see docs/architecture.md."""
