"""What a set of scores says: figures with intervals, subgroups, plots, tables, and the model card's page.

`examine` measures one scored set with `metrics` and `subgroups`; `data` finds the sets; `served` scores them through
Triton; `console` prints, `card` and `page` write (with `results`, `limits`, `markdown` and `plots`).
"""
