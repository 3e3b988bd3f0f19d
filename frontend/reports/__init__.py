"""What is said of a result to others: a DICOM structured report, a FHIR DiagnosticReport, JSON for a webhook.

All three are made of the same `facts.Facts` and say the same. Whatever they are sent with, they are the same again when
they are sent again.
"""
