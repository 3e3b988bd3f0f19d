"""The outbox's worker: takes what is due, makes the report, sends it, marks what came of it."""
