"""The two drawn images that `dermserve.image.preprocessing_hash` prepares. Changing a byte of them changes every hash.

`probe.jpg`: 640×480 as stored, 4:2:0, quality 85, EXIF orientation 6, round dark frame. `probe.png`: 2400×2000 with a
palette and a black border, large enough for the reduction before the resize to act.
"""
