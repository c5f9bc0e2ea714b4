"""How much is zero: counts, exact sums, the report, and what it says.

Zeros are counted within an image by `counting`, added up over a batch by `exact.sum_counts`, over
batches by `report.SparsityReport.__add__`, and over a store by `streaming.jobs.read_sparsity`.
"""
