"""The four drawn images that `dermserve.image.preprocessing_hash` prepares. Changing a byte of them changes every hash.

`probe.jpg`: 640×480 as stored, 4:2:0, quality 85, EXIF orientation 6, round dark frame. `probe.png`: 2400×2000 with a
palette and a black border, large enough for the reduction before the resize to act. `large.jpg`: 1800×1400, 4:2:0,
quality 70, which is decoded at half its size. `framed.jpg`: 1500×1300, progressive, 4:2:2, EXIF orientation 8, of whose
round view half the size leaves too little, so that it is decoded again, whole.
"""
