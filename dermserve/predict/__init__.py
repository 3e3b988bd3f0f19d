"""`dermserve predict`, the hospital's own client: images in, a table out, whatever is killed in between.

`command` is the command line; `inputs` and `watch` find images, `scoring` sends them through a door of `doors` or `api` as
fast as `pace` lets it, `journal` keeps every outcome, and `tables` makes the CSV from it, in order.
"""

from dermserve.predict.command import predict

__all__ = ["predict"]
