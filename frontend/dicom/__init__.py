"""The DICOM door: a process of its own (`python -m frontend.dicom`) that takes images from gateways by C-STORE.

Web workers import neither this nor pynetdicom, but for `identifiers`, `reception`, `senders` and
`sop_classes`, which do without it.
"""
