"""Looks through a folder of ISIC images and tables for everything that would make training or its figures wrong.

`run.check` is the way in; `findings.CODES` lists what can be found, `docs/data.md` says how and what cannot be.
"""
