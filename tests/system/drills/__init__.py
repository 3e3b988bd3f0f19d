"""Failure drills: a stream keeps running while parts are killed; what was acknowledged must be stored, exactly once."""
